"""Episodes in the Zarr v2 replay buffer of Diffusion Policy, a folder or a `.zarr.zip`.

`data/<key>` contains the control steps of all episodes, one after another, `meta/episode_ends` the
row after each episode's last. Keys include the group: `data/img`, `data/action`. The files contain
no control frequency. Recordings of real robots with their frames in `videos/` are not read.
Source: real-stanford/diffusion_policy@5ba07ac6, diffusion_policy/common/replay_buffer.py.
Differs from the source: a chunk that was never written is an error, not zeros.
"""

import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Float64, Int64, UInt8

from pipeline.datasets.base import (
    DatasetConfig,
    DatasetFacts,
    FormatReader,
    FormatSurvey,
    as_floating,
    require_steps,
)
from pipeline.datasets.manifest.selection import LEAVE_OUT, wanted_numbers
from pipeline.datasets.pixels import (
    PixelLayout,
    Scale,
    alpha_remarks,
    decide_scale,
    pixel_layout,
    require_layout,
)
from pipeline.datasets.replay_buffer.arrays import (
    DAMAGE,
    ENDS_KEY,
    ReplayBufferFile,
    array_keys,
)
from pipeline.errors import DatasetError, FrameReadError
from policy.errors import one_line

CLOCK_KEY: Final = "data/timestamp"  # seconds; recordings of real robots have it


class DiffusionPolicyZarrReader(FormatReader):
    """A replay buffer; an episode's number is its position."""

    fps: float | None = None

    def __init__(self, config: DatasetConfig) -> None:
        """Open the arrays and check that all chunks of kept episodes are stored."""
        self._config, self._root = config, config.local_root
        self._scales: dict[str, Scale] = {}
        self._opened: ReplayBufferFile | None = None
        try:
            self._ends = self._read_ends()
            self._numbers = sorted(wanted_numbers(config, range(len(self._ends))))
            self.num_episodes: int = len(self._numbers)
            self._require_ascending()
            file = self._file()
            clock = [CLOCK_KEY] if CLOCK_KEY in file.keys else []
            arrays = {
                key: file.array(key) for key in (*config.view_keys, *config.number_keys, *clock)
            }
            self._layouts: dict[str, PixelLayout] = {
                key: require_layout(
                    arrays[key].shape, arrays[key].dtype, f"{self._root}: {key}", ""
                )
                for key in config.view_keys
            }
            for key in (*config.number_keys, *clock):
                if not _is_numbers(arrays[key]):
                    raise DatasetError(
                        f"{self._root}: {key}: expected one row of numbers per step, found "
                        f"{arrays[key].dtype} {arrays[key].shape}; use another key"
                    )
            self._require_rows(arrays)
            rows = [self._rows(episode) for episode in range(self.num_episodes)]
            for key in arrays:
                file.require_chunks(key, rows)
        except BaseException:
            self.close()
            raise
        self._has_clock = bool(clock)
        self.facts = DatasetFacts(remarks=alpha_remarks(self._layouts))

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        """Whether the names of the files are those of a replay buffer, readable or not."""
        try:
            if root.is_dir():
                has_header = any((root / name).is_file() for name in (".zgroup", "zarr.json"))
                return has_header and (root / ENDS_KEY).is_dir() and (root / "data").is_dir()
            if root.name.endswith(".zarr.zip"):
                return root.is_file()
            return root.suffix == ".zip" and ENDS_KEY in array_keys(root)
        except (OSError, zipfile.BadZipFile):
            return False

    @classmethod
    def survey(cls, root: Path) -> FormatSurvey:
        """List the arrays: those of color frames are views, the others numbers."""
        file = ReplayBufferFile(root, allow_outside=False)
        try:
            arrays = {key: file.array(key) for key in file.keys if key != ENDS_KEY}
        finally:
            file.close()
        layouts = {key: pixel_layout(array.shape, array.dtype) for key, array in arrays.items()}
        return FormatSurvey(
            fps=None,
            views={key: layout.size for key, layout in layouts.items() if layout},
            numbers={
                key: tuple(map(str, range(array.shape[1] if array.ndim == 2 else 1)))
                for key, array in arrays.items()
                if _is_numbers(array)
            },
        )

    def episode_number(self, episode: int) -> int:
        return self._numbers[self._require_episode(episode)]

    def episode_name(self, episode: int) -> str:
        return f"{self._root}: episode {self.episode_number(episode)}"

    def episode_length(self, episode: int) -> int:
        start, stop = self._rows(episode)
        return stop - start

    def frame_size(self, episode: int, view_key: str) -> tuple[int, int]:
        return self._layouts[view_key].size

    def frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        first, last = self._rows(episode)
        require_steps(start, stop, last - first, self.episode_name(episode))
        views = []
        for key, layout in self._layouts.items():
            try:
                frames = self._read(episode, key, start, stop)
            except DatasetError as error:
                raise FrameReadError(str(error)) from error
            where = f"{self.episode_name(episode)}: {key}"
            views.append(layout.to_rgb(frames, self._scale(key, layout), where, start))
        return tuple(views)

    def numbers(self, episode: int, number_key: str) -> Float[np.ndarray, "t d"]:
        length = self.episode_length(episode)
        return as_floating(self._read(episode, number_key, 0, length)).reshape(length, -1)

    def timestamp(self, episode: int) -> Float64[np.ndarray, " t"] | None:
        if not self._has_clock:
            return None
        seconds = np.asarray(self.numbers(episode, CLOCK_KEY)[:, 0], np.float64)
        return np.asarray(seconds - seconds[0])

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _file(self) -> ReplayBufferFile:
        if self._opened is None:
            self._opened = ReplayBufferFile(self._root, allow_outside=self._config.allow_outside)
        return self._opened

    def _scale(self, key: str, layout: PixelLayout) -> Scale:
        def middle_frame(episode: int) -> np.ndarray:
            middle = self.episode_length(episode) // 2
            return self._read(episode, key, middle, middle + 1)

        if not layout.is_floating:
            return "levels"
        if key not in self._scales:
            self._scales[key] = decide_scale(middle_frame, self.num_episodes)
        return self._scales[key]

    def _rows(self, episode: int) -> tuple[int, int]:
        number = self.episode_number(episode)
        return int(self._ends[number - 1]) if number else 0, int(self._ends[number])

    def _read_ends(self) -> Int64[np.ndarray, " e"]:
        array = self._file().array(ENDS_KEY)
        if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
            raise DatasetError(
                f"{self._root}: {ENDS_KEY}: expected whole numbers on one axis, found "
                f"{array.dtype} {array.shape}; write the row after each episode's last"
            )
        try:
            return np.asarray(array[:]).astype(np.int64)
        except DAMAGE as error:
            raise DatasetError(
                f"{self._root}: {ENDS_KEY}: expected a readable array, found {one_line(error)}; "
                "copy the data again"
            ) from error

    def _require_ascending(self) -> None:
        """Refuse kept episodes without rows, or that begin before an earlier one ends."""
        ends = self._ends
        starts = np.concatenate([[0], ends[:-1]])
        for number in self._numbers:
            if not max(0, ends[:number].max(initial=0)) <= starts[number] < ends[number]:
                raise DatasetError(
                    f"{self._root}: {ENDS_KEY}: expected ascending ends, each episode with at "
                    f"least one row, found rows [{starts[number]}, {ends[number]}) for episode "
                    f"{number}; correct the ends, or leave out an episode that has no rows with "
                    f"`episodes = {{except = [{number}]}}` in the manifest"
                )

    def _require_rows(self, arrays: dict[str, Any]) -> None:
        """Refuse arrays of different lengths: any rows of them may be missing."""
        last = self._numbers[-1]
        is_last = last == len(self._ends) - 1  # else the last end may be wrong
        expected = int(self._ends[-1]) if is_last else next(iter(arrays.values())).shape[0]
        for key, array in arrays.items():
            if array.shape[0] != expected or expected < self._ends[last]:
                raise DatasetError(
                    f"{self._root}: {key}: expected {max(expected, int(self._ends[last]))} rows, "
                    f"by {ENDS_KEY} or the other arrays, found {array.shape[0]}: an array was cut "
                    "off or edited, or an episode is incomplete; cut all arrays to the same length "
                    "to drop it, or copy the data again"
                )

    def _read(self, episode: int, key: str, start: int, stop: int) -> np.ndarray:
        first, _ = self._rows(episode)
        try:
            return np.asarray(self._file().array(key)[first + start : first + stop])
        except DAMAGE as error:
            if isinstance(error, DatasetError):
                raise
            found = one_line(error)
            raise DatasetError(
                f"{self.episode_name(episode)}: {key}: expected readable rows [{first + start}, "
                f"{first + stop}), found {found}; copy the data again, or {LEAVE_OUT}"
            ) from error


def _is_numbers(array: Any) -> bool:
    has_columns = array.ndim == 1 or (array.ndim == 2 and array.shape[1] > 0)
    return has_columns and array.dtype.kind in "fiub"
