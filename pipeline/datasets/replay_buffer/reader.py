"""Episodes in the Zarr v2 replay buffer of Diffusion Policy, a folder or a `.zarr.zip`.

`data/<key>` holds the control steps of all episodes one after another, `meta/episode_ends` the row
after each episode's last. Keys are whole: `data/img`, `data/action`. The files keep no control
frequency. Recordings of real robots with their frames in `videos/` are not read.
Source: real-stanford/diffusion_policy@5ba07ac6, diffusion_policy/common/replay_buffer.py.
Differs from the source: a chunk that was never written is an error and not zeros.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Float64, Int64, UInt8

from pipeline.datasets.base import (
    DatasetFacts,
    DatasetPlace,
    EpisodeLabel,
    FormatSurvey,
    require_steps,
)
from pipeline.datasets.limits import MAX_COLUMNS, MAX_NUMBERS, MAX_PIXELS
from pipeline.datasets.manifest.selection import LEAVE_OUT, wanted_numbers
from pipeline.datasets.pixels import (
    LOOKS,
    PixelLayout,
    Scale,
    alpha_remarks,
    decide_scale,
    kind_of_array,
    pixel_layout,
)
from pipeline.datasets.replay_buffer.arrays import (
    DAMAGE,
    ENDS_KEY,
    grid_of,
    open_array,
    open_group,
)
from pipeline.datasets.replay_buffer.chunks import (
    ArrayFiles,
    absent_chunk,
    array_keys,
    require_chunks,
    zip_members,
)
from pipeline.errors import DatasetError, FrameReadError

CLOCK_KEY: Final = "data/timestamp"  # seconds; recordings of real robots have it


class DiffusionPolicyZarrReader:
    """A replay buffer; implements `FormatReader`. Episode numbers are positions."""

    reads_objects = False
    fps: float | None = None

    def __init__(self, place: DatasetPlace) -> None:
        """Open the arrays that the keys name and look for the chunks of them; decode only ends.

        Raises:
            DatasetError: no replay buffer, no episode that is wanted, or an array is absent, of
                another shape, type or length, needs a codec that is not installed, lacks a chunk
                of a wanted episode, or lies outside the root.
        """
        self._place = place
        self._root = place.local_root
        self._group: Any = None  # a zarr.Group
        self._files: dict[str, ArrayFiles] = {}
        self._arrays: dict[str, Any] = {}
        self._layouts: dict[str, PixelLayout] = {}
        self._scales: dict[str, Scale] = {}
        self._num_rows = 0  # of all arrays, where the last episode is not wanted
        self._clock = CLOCK_KEY if CLOCK_KEY in array_keys(place.local_root) else None
        try:
            self._ends = self._read_ends()
            self._numbers = sorted(wanted_numbers(place, range(len(self._ends))))
            self.num_episodes: int = len(self._numbers)
            self._require_apart()
            for key in place.view_keys:
                self._layouts[key] = _frame_layout(f"{self._root}: {key}", self._array(key))
                self._require_whole(key)
            self.facts = DatasetFacts(remarks=alpha_remarks(self._layouts))
            for key in {*place.number_keys, *filter(None, [self._clock])}:
                _require_numbers(f"{self._root}: {key}", self._array(key))
                self._require_whole(key)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def recognizes(root: Path) -> bool:
        """Tell by names whether this is a replay buffer, readable or not."""
        try:
            if root.is_dir():
                has_header = any((root / name).is_file() for name in (".zgroup", "zarr.json"))
                return has_header and (root / ENDS_KEY).is_dir() and (root / "data").is_dir()
            if not root.is_file() or root.suffix != ".zip":
                return False
            return root.name.endswith(".zarr.zip") or f"{ENDS_KEY}/.zarray" in zip_members(root)
        except (OSError, DatasetError):
            return False

    @staticmethod
    def survey(root: Path) -> FormatSurvey:
        """List the arrays: those of three-channel pictures are views, the others numbers.

        Raises:
            DatasetError: no replay buffer, or an array's header does not read.
        """
        group = open_group(root, allow_outside=False)
        try:
            arrays = {
                key: open_array(group, root, key, allow_outside=False) for key in array_keys(root)
            }
        finally:
            group.store.close()
        views: dict[str, tuple[int, int] | None] = {
            key: layout.size
            for key, array in arrays.items()
            if (layout := pixel_layout(array.shape, array.dtype)) is not None
        }
        numbers = {
            key: tuple(map(str, range(array.shape[1] if array.ndim == 2 else 1)))
            for key, array in arrays.items()
            if array.ndim in (1, 2) and array.dtype.kind in "fiub"
            if array.ndim == 1 or array.shape[1] <= MAX_COLUMNS
        }
        return FormatSurvey(fps=None, views=views, numbers=numbers)

    def episode_number(self, episode: int) -> int:
        """Return the position in the replay buffer: the format numbers no episodes."""
        self._rows(episode)
        return self._numbers[episode]

    def episode_name(self, episode: int) -> str:
        """Name an episode for messages: the replay buffer and the episode's position."""
        return f"{self._root}: episode {self.episode_number(episode)}"

    def episode_length(self, episode: int) -> int:
        """Return the number of control steps of an episode, at least 1."""
        start, stop = self._rows(episode)
        return stop - start

    def label(self, episode: int) -> EpisodeLabel:
        """Return nothing: the format says nothing of an episode."""
        self._rows(episode)
        return EpisodeLabel()

    def frame_size(self, episode: int, view_key: str) -> tuple[int, int]:
        """Return (height, width) of a view's frames in pixels, from the header."""
        self._rows(episode)
        return self._layouts[view_key].size

    def frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        """Read frames [start, stop) of one episode, one array a view key, RGB.

        Floating-point frames are whole numbers in [0, 255], as in the public Push-T file, or in
        [0, 1].

        Raises:
            FrameReadError: a step is out of range, a chunk does not decode, or a floating-point
                value is not of its camera's scale.
        """
        first, last = self._rows(episode)
        require_steps(start, stop, last - first, self.episode_name(episode))
        views = []
        for key in self._place.view_keys:
            where = f"{self.episode_name(episode)}: {key}"
            try:
                frames = self._read(key, first + start, first + stop, where)
            except DatasetError as error:
                raise FrameReadError(str(error)) from error
            views.append(self._layouts[key].to_rgb(frames, self._scale(key), where, start))
        return tuple(views)

    def numbers(self, episode: int, number_key: str) -> Float[np.ndarray, "t d"]:
        """Read one array of every step; float32 stays so, and integers become float64.

        Raises:
            DatasetError: a chunk does not decode.
        """
        where = f"{self.episode_name(episode)}: {number_key}"
        values = self._read(number_key, *self._rows(episode), where)
        is_small = values.dtype.kind == "f" and values.dtype.itemsize <= 4
        return values.astype(np.float32 if is_small else np.float64).reshape(len(values), -1)

    def timestamp(self, episode: int) -> Float64[np.ndarray, " t"] | None:
        """Return seconds since the episode's first step, where `data/timestamp` is there.

        Raises:
            DatasetError: a chunk does not decode.
        """
        if self._clock is None:
            return None
        seconds = np.asarray(self.numbers(episode, self._clock)[:, 0], np.float64)
        return np.asarray(seconds - seconds[0])

    def frame_drift(self, episode: int, view_key: str) -> float:
        """Return 0: a frame has its step's row and no time of its own."""
        self._rows(episode)
        return 0.0

    def subset(self, name: str) -> tuple[int, ...]:
        """Refuse: the format names no subsets.

        Raises:
            DatasetError: always.
        """
        raise DatasetError(
            f"{self._root}: expected a subset {name}, found a format that names none; list the "
            "episodes by number"
        )

    def close(self) -> None:
        """Close the zip; reading again opens it again."""
        self._arrays.clear()
        for files in self._files.values():
            files.close()
        if self._group is not None:
            self._group.store.close()
            self._group = None

    def _scale(self, key: str) -> Scale:
        if key not in self._scales:
            is_floating = self._layouts[key].is_floating
            self._scales[key] = decide_scale(self._looks(key)) if is_floating else "levels"
        return self._scales[key]

    def _looks(self, key: str) -> Iterator[np.ndarray]:
        """Read the middle frames of some episodes; those that do not read tell nothing."""
        for episode in range(min(LOOKS, self.num_episodes)):
            start, stop = self._rows(episode)
            middle = (start + stop) // 2
            with contextlib.suppress(DatasetError):
                yield self._read(key, middle, middle + 1, "")

    def _rows(self, episode: int) -> tuple[int, int]:
        if not 0 <= episode < self.num_episodes:
            raise IndexError(f"episode {episode}, want 0..{self.num_episodes - 1}")
        number = self._numbers[episode]
        return int(self._ends[number - 1]) if number else 0, int(self._ends[number])

    def _array(self, key: str) -> Any:
        allow_outside = self._place.allow_outside
        if self._group is None:
            self._group = open_group(self._root, allow_outside=allow_outside)
        if key not in self._arrays:
            array = open_array(self._group, self._root, key, allow_outside=allow_outside)
            self._arrays[key] = array
        return self._arrays[key]

    def _require_whole(self, key: str) -> Any:
        """Open an array, and refuse one that is not whole or not of the episodes' length."""
        array = self._array(key)
        place = f"{self._root}: {key}"
        if not array.ndim or min(array.shape) < 1 or min(array.chunks) < 1:
            raise DatasetError(
                f"{place}: expected rows of at least one number, found shape {array.shape}; remove "
                "this key or write its rows"
            )
        if key != ENDS_KEY:
            self._require_rows(place, array.shape[0])
        files = ArrayFiles(self._root, key, allow_outside=self._place.allow_outside)
        self._files[key] = files
        rows = [(0, array.shape[0])]
        if key != ENDS_KEY:
            rows = [self._rows(episode) for episode in range(self.num_episodes)]
        require_chunks(
            place,
            grid_of(array),
            files,
            rows,
            chunk_bytes=_chunk_bytes(array),
            compressed=any((array.metadata.compressor, *(array.metadata.filters or ()))),
            advice=_advice(key),
        )
        if array.ndim < 3:
            most = max(stop - start for start, stop in rows) * (*array.shape, 1)[1]
            if most > MAX_NUMBERS:
                raise DatasetError(
                    f"{place}: expected at most {MAX_NUMBERS} numbers an episode, found {most}; "
                    f"split the episode{_advice(key)}"
                )
        return array

    def _read_ends(self) -> Int64[np.ndarray, " e"]:
        place = f"{self._root}: {ENDS_KEY}"
        array = self._require_whole(ENDS_KEY)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DatasetError(
                f"{place}: expected whole numbers on one axis, found {array.dtype} {array.shape}; "
                "write the row after each episode's last"
            )
        return self._read(ENDS_KEY, 0, array.shape[0], place).astype(np.int64)

    def _require_apart(self) -> None:
        """Refuse wanted episodes without rows, or with those of another, wanted or not."""
        ends = self._ends
        starts = np.concatenate([[0], ends[:-1]])
        has_rows = (starts >= 0) & (ends > starts)
        before = np.maximum.accumulate(np.where(has_rows, ends, 0))
        after = np.minimum.accumulate(np.where(has_rows, starts, np.iinfo(np.int64).max)[::-1])
        is_apart = np.ones(len(ends), bool)
        is_apart[1:] &= before[:-1] <= starts[1:]
        is_apart[:-1] &= after[::-1][1:] >= ends[:-1]
        wrong = next((n for n in self._numbers if not (has_rows[n] and is_apart[n])), None)
        if wrong is not None:
            raise DatasetError(
                f"{self._root}: {ENDS_KEY}: expected ends that rise, each episode with rows of its "
                f"own, found rows [{starts[wrong]}, {ends[wrong]}) for episode {wrong}; correct "
                "the ends, or leave out an episode that has no rows with `episodes = {except = "
                f"[{wrong}]}}` in the manifest"
            )

    def _require_rows(self, place: str, num_rows: int) -> None:
        """Refuse an array of another length than the episodes', which may have lost any rows."""
        expected, last = int(self._ends[-1]), len(self._ends) - 1
        if last != self._numbers[-1]:  # whose end may be wrong: all arrays must agree then
            self._num_rows = expected = self._num_rows or num_rows
        if num_rows != expected or num_rows < self._ends[self._numbers[-1]]:
            raise DatasetError(
                f"{place}: expected {expected} rows, as the last of {ENDS_KEY} or the other arrays "
                f"have, found {num_rows}: an array was cut off or edited, or an episode was not "
                f"written to its end; cut all arrays to {expected} rows if the surplus is "
                "unfinished, else copy the data again"
            )

    def _read(self, key: str, start: int, stop: int, where: str) -> np.ndarray:
        array, name = self._array(key), ""
        try:
            for name in grid_of(array).names(start, stop) if stop > start else ():
                self._files[key].require_whole(name, array.metadata.compressor)
            return np.asarray(array[start:stop])
        except FileNotFoundError as error:
            raise absent_chunk(where, name, f"rows [{start}, {stop})", _advice(key)) from error
        except DAMAGE as error:
            found = self._files[key].why_unreadable(name, error, f"copy it again{_advice(key)}")
            raise DatasetError(
                f"{where}: rows [{start}, {stop}), chunk {name}: expected it to decode, {found}"
            ) from error


def _frame_layout(place: str, array: Any) -> PixelLayout:
    layout = pixel_layout(array.shape, array.dtype)
    if layout is None:
        raise DatasetError(
            f"{place}: expected uint8 or floating-point frames (steps, height, width, 3), found "
            f"{kind_of_array(array.shape, array.dtype)}; name a key of RGB frames"
        )
    height, width = layout.size
    if height * width > MAX_PIXELS:
        raise DatasetError(
            f"{place}: expected frames of 1 to {MAX_PIXELS} pixels, found {height}x{width}; name "
            "another camera, or write smaller frames"
        )
    return layout


def _require_numbers(place: str, array: Any) -> None:
    if array.ndim > 2 or array.dtype.kind not in "fiub":
        raise DatasetError(
            f"{place}: expected one row of numbers a step, found {array.dtype} {array.shape}; name "
            "another key"
        )
    if array.ndim == 2 and array.shape[1] > MAX_COLUMNS:
        raise DatasetError(
            f"{place}: expected at most {MAX_COLUMNS} numbers a step, found {array.shape}; name "
            "another key"
        )


def _advice(key: str) -> str:
    return "" if key == ENDS_KEY else f", or {LEAVE_OUT}"


def _chunk_bytes(array: Any) -> int:
    return int(math.prod(array.chunks) * array.dtype.itemsize)
