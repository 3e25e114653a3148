"""The base class of the readers of HDF5 formats. One file is open at a time."""

from collections.abc import Sequence

import h5py
import numpy as np
from jaxtyping import Float, Shaped, UInt8

from pipeline.datasets.base import (
    DatasetConfig,
    EpisodeLabel,
    FormatReader,
    as_floating,
    require_steps,
)
from pipeline.datasets.causes import why_unreadable
from pipeline.datasets.compressed import decode_images, image_size
from pipeline.datasets.hdf5.episodes import EpisodeGroup, EpisodeHeader
from pipeline.datasets.hdf5.files import DAMAGED, HDF5_ERRORS, find_dataset, hdf5_file
from pipeline.datasets.pixels import PixelLayout, Scale, decide_scale, pixel_layout
from pipeline.errors import DatasetError, FrameReadError
from pipeline.storage.location import Location


class Hdf5Reader(FormatReader):
    """The arrays of episodes whose headers have been read."""

    reads_objects = True

    def __init__(
        self,
        config: DatasetConfig,
        episodes: Sequence[EpisodeHeader],
        upside_down: frozenset[Location],
    ) -> None:
        """Store one or more episodes, in the order of their numbers.

        Frames of the files in `upside_down` are stored with the lowest row first.

        Raises:
            DatasetError: an array is wider in one episode than in another.
        """
        self.num_episodes: int = len(episodes)
        self._view_keys = config.view_keys
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
                        f"{other.at.name}: expected width {first.widths[key]} of {key} as in "
                        f"{first.at.name}, found {width}; create one dataset per robot"
                    )

    def episode_number(self, episode: int) -> int:
        return self._header(episode).at.number

    def episode_name(self, episode: int) -> str:
        return self._header(episode).at.name

    def episode_length(self, episode: int) -> int:
        return self._header(episode).length

    def label(self, episode: int) -> EpisodeLabel:
        return self._header(episode).label

    def frame_size(self, episode: int, view_key: str) -> tuple[int, int]:
        """Return (height, width) of a view's frames in pixels; if compressed, of the first one."""
        header = self._header(episode)
        layout = header.layouts[view_key]
        if layout is not None:
            return layout.size
        if (episode, view_key) not in self._sizes:
            data = self._rows(header, view_key, 0, 1)[0]
            size = image_size(bytes(data), _frame_name(header, view_key, 0))
            self._sizes[episode, view_key] = size
        return self._sizes[episode, view_key]

    def frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        """Read frames [start, stop) of one episode, as `FormatReader.frames` does.

        Recorders that swapped the channels before they compressed frames leave blue where red
        should be; the manifest's `color_order` corrects that.
        """
        header = self._header(episode)
        require_steps(start, stop, header.length, header.at.name)
        views = []
        for key in self._view_keys:
            rows, layout = self._rows(header, key, start, stop), header.layouts[key]
            if layout is None:
                names = (_frame_name(header, key, step) for step in range(start, stop))
                frames = decode_images(map(bytes, rows), names, self.frame_size(episode, key))
            else:
                where = f"{header.at.name}: {key}"
                frames = layout.to_rgb(rows, self._scale(key, layout), where, start)
            if header.at.path in self._upside_down:
                frames = np.ascontiguousarray(frames[:, ::-1])
            views.append(frames)
        return tuple(views)

    def numbers(self, episode: int, number_key: str) -> Float[np.ndarray, "t d"]:
        header = self._header(episode)
        shape = (header.length, header.widths[number_key])
        try:
            values = np.asarray(self._dataset(header.at, number_key)[...])
            return as_floating(values).reshape(shape)
        except HDF5_ERRORS as error:
            raise DatasetError(
                f"{header.at.name}: expected {shape} numbers at {number_key}, "
                f"{why_unreadable(header.at.path, error, DAMAGED)}"
            ) from error

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _header(self, episode: int) -> EpisodeHeader:
        return self._episodes[self._require_episode(episode)]

    def _dataset(self, at: EpisodeGroup, key: str) -> h5py.Dataset:
        if self._open is None or self._open[0] != at.path:
            self.close()
            self._open = (at.path, hdf5_file(at.path))
        dataset = find_dataset(self._open[1], at.key(key))
        if dataset is None:
            raise KeyError(f"{key} was removed after the dataset was opened")
        return dataset

    def _rows(
        self, header: EpisodeHeader, key: str, start: int, stop: int
    ) -> Shaped[np.ndarray, "t ..."]:
        try:
            dataset = self._dataset(header.at, key)
            is_same = pixel_layout(dataset.shape, dataset.dtype) == header.layouts[key]
            if len(dataset) != header.length or not is_same:
                raise ValueError(f"shape {dataset.shape}: the file changed since it was opened")
            rows = np.asarray(dataset[start:stop])
        except HDF5_ERRORS as error:
            if stop - start > 1:  # find the frame that is damaged
                for step in range(start, stop):
                    self._rows(header, key, step, step + 1)
            raise FrameReadError(
                f"{_frame_name(header, key, start)}: expected a readable frame, "
                f"{why_unreadable(header.at.path, error, DAMAGED)}"
            ) from error
        return rows

    def _scale(self, key: str, layout: PixelLayout) -> Scale:
        def middle_frame(episode: int) -> np.ndarray:
            header = self._header(episode)
            middle = header.length // 2
            return self._rows(header, key, middle, middle + 1)

        if not layout.is_floating:
            return "levels"
        if key not in self._scales:
            self._scales[key] = decide_scale(middle_frame, self.num_episodes)
        return self._scales[key]


def _frame_name(header: EpisodeHeader, key: str, step: int) -> str:
    return f"{header.at.name}: frame {step} of {key}"
