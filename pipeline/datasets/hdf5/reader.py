"""The common part of the readers of HDF5 layouts: rows of the arrays of described episodes.

One file is open at a time.
"""

import contextlib
from collections.abc import Iterator, Sequence

import h5py
import numpy as np
from jaxtyping import Float, Float64, Shaped, UInt8

from pipeline.datasets.base import DatasetFacts, DatasetPlace, EpisodeLabel, require_steps
from pipeline.datasets.causes import why_unreadable
from pipeline.datasets.compressed import decode_image, image_size
from pipeline.datasets.hdf5.episodes import EpisodeFacts, EpisodePlace
from pipeline.datasets.hdf5.files import DAMAGED, HDF5_ERRORS, as_floating, find_dataset, hdf5_file
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.datasets.pixels import LOOKS, PixelLayout, Scale, decide_scale, pixel_layout
from pipeline.errors import DatasetError, FrameReadError
from pipeline.storage.location import Location


class Hdf5Reader:
    """The arrays of described episodes; the common part of the layouts' readers."""

    reads_objects = True
    fps: float | None
    """Control steps a second as the files say; None where they do not."""
    facts: DatasetFacts
    """What the files say of the whole dataset."""

    def __init__(
        self,
        place: DatasetPlace,
        episodes: Sequence[EpisodeFacts],
        upside_down: frozenset[Location],
    ) -> None:
        """Take over episodes in the order of their numbers.

        Args:
            place: whose keys the episodes were described with.
            episodes: of `describe_episode`, at least one.
            upside_down: files whose frames are stored with the lowest row first.

        Raises:
            DatasetError: an array is wider in one episode than in another.
        """
        self.num_episodes: int = len(episodes)
        self._view_keys = place.view_keys
        self._episodes = episodes
        self._upside_down = upside_down
        self._open: tuple[Location, h5py.File] | None = None
        self._scales: dict[str, Scale] = {}
        self._sizes: dict[tuple[int, str], tuple[int, int]] = {}  # of compressed frames
        first = episodes[0]
        for other in episodes:
            for key, width in other.widths.items():
                if width != first.widths[key]:
                    raise DatasetError(
                        f"{other.place.name}: expected width {first.widths[key]} of {key} as in "
                        f"{first.place.name}, found {width}; keep one robot to a dataset"
                    )

    def episode_number(self, episode: int) -> int:
        """Return the number that the files give the episode at this position."""
        return self._facts(episode).place.number

    def episode_name(self, episode: int) -> str:
        """Name an episode for messages: the path of its file, and the place in it."""
        return self._facts(episode).place.name

    def episode_length(self, episode: int) -> int:
        """Return the number of control steps of an episode, at least 1."""
        return self._facts(episode).length

    def label(self, episode: int) -> EpisodeLabel:
        """Return what the attributes say of an episode."""
        return self._facts(episode).label

    def frame_size(self, episode: int, view_key: str) -> tuple[int, int]:
        """Return (height, width) of a view's frames in pixels; of compressed frames, the first's.

        Raises:
            FrameReadError: the first compressed frame does not read, or is no image.
        """
        facts = self._facts(episode)
        layout = facts.layouts[view_key]
        if layout is not None:
            return layout.size
        if (episode, view_key) not in self._sizes:
            data = self._rows(facts, view_key, 0, 1)[0]
            size = image_size(bytes(data), _frame_name(facts, view_key, 0))
            self._sizes[episode, view_key] = size
        return self._sizes[episode, view_key]

    def frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        """Read frames [start, stop) of one episode, one array a view key, upright, as RGB.

        A compressed frame is what its JPEG decodes to; recorders that swapped the channels before
        they compressed leave blue where red should be, which the manifest has to say.

        Raises:
            FrameReadError: the episode has no such steps, or a frame does not decompress, does not
                decode or is of another size than the first; names the frame.
        """
        facts = self._facts(episode)
        require_steps(start, stop, facts.length, facts.place.name)
        views = []
        for key in self._view_keys:
            rows, layout = self._rows(facts, key, start, stop), facts.layouts[key]
            if layout is None:
                frames = self._decoded(episode, key, start, rows)
            else:
                where = f"{facts.place.name}: {key}"
                frames = layout.to_rgb(rows, self._scale(key, layout), where, start)
            if facts.place.path in self._upside_down:
                frames = np.ascontiguousarray(frames[:, ::-1])
            views.append(frames)
        return tuple(views)

    def numbers(self, episode: int, number_key: str) -> Float[np.ndarray, "t d"]:
        """Read one array of every step; float32 stays so, integers and bool become float64.

        One-axis arrays have d = 1.

        Raises:
            DatasetError: the array does not read.
        """
        facts = self._facts(episode)
        shape = (facts.length, facts.widths[number_key])
        try:
            values = np.asarray(self._dataset(facts.place, number_key)[...])
            return as_floating(values).reshape(shape)
        except HDF5_ERRORS as error:
            raise DatasetError(
                f"{facts.place.name}: expected {shape} numbers at {number_key}, "
                f"{why_unreadable(facts.place.path, error, DAMAGED)}"
            ) from error

    def timestamp(self, episode: int) -> Float64[np.ndarray, " t"] | None:
        """Return None: the layouts keep no clock."""
        self._facts(episode)
        return None

    def frame_drift(self, episode: int, view_key: str) -> float:
        """Return 0: a frame lies in the row of its step and carries no time."""
        _ = self._facts(episode).layouts[view_key]
        return 0.0

    def close(self) -> None:
        """Close the file that is open; reading again opens it again."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _facts(self, episode: int) -> EpisodeFacts:
        if not 0 <= episode < self.num_episodes:
            raise IndexError(f"episode {episode}, want 0..{self.num_episodes - 1}")
        return self._episodes[episode]

    def _dataset(self, place: EpisodePlace, key: str) -> h5py.Dataset:
        if self._open is None or self._open[0] != place.path:
            self.close()
            self._open = (place.path, hdf5_file(place.path))
        dataset = find_dataset(self._open[1], place.key(key))
        if dataset is None:
            raise KeyError(f"{key} is gone since the dataset was opened")
        return dataset

    def _rows(
        self, facts: EpisodeFacts, key: str, start: int, stop: int
    ) -> Shaped[np.ndarray, "t ..."]:
        try:
            dataset = self._dataset(facts.place, key)
            is_same = pixel_layout(dataset.shape, dataset.dtype) == facts.layouts[key]
            if len(dataset) != facts.length or not is_same:
                raise ValueError(f"shape {dataset.shape}: the file changed since it was opened")
            rows = np.asarray(dataset[start:stop])
        except HDF5_ERRORS as error:
            if stop - start > 1:  # find the frame that is broken
                for step in range(start, stop):
                    self._rows(facts, key, step, step + 1)
            raise FrameReadError(
                f"{_frame_name(facts, key, start)}: expected a frame that reads, "
                f"{why_unreadable(facts.place.path, error, DAMAGED)}"
            ) from error
        return rows

    def _scale(self, key: str, layout: PixelLayout) -> Scale:
        if key not in self._scales:
            is_floating = layout.is_floating
            self._scales[key] = decide_scale(self._looks(key)) if is_floating else "levels"
        return self._scales[key]

    def _looks(self, key: str) -> Iterator[np.ndarray]:
        """Read the middle frames of some episodes; those that do not read tell nothing."""
        for facts in self._episodes[:LOOKS]:
            middle = facts.length // 2
            with contextlib.suppress(FrameReadError):
                yield self._rows(facts, key, middle, middle + 1)

    def _decoded(
        self, episode: int, key: str, start: int, files: Shaped[np.ndarray, "t ..."]
    ) -> UInt8[np.ndarray, "t h w 3"]:
        facts = self._facts(episode)
        height, width = self.frame_size(episode, key)
        frames = []
        for step, data in enumerate(files, start):
            where = _frame_name(facts, key, step)
            frame = decode_image(bytes(data), where)
            if frame.shape[:2] != (height, width):
                raise FrameReadError(
                    f"{where}: expected {height}x{width} pixels as in frame 0, found "
                    f"{frame.shape[0]}x{frame.shape[1]}; {LEAVE_OUT}"
                )
            frames.append(frame)
        return np.stack(frames) if frames else np.empty((0, height, width, 3), np.uint8)


def _frame_name(facts: EpisodeFacts, key: str, step: int) -> str:
    return f"{facts.place.name}: frame {step} of {key}"
