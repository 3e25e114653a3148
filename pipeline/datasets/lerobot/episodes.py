"""Where the episodes of a LeRobot dataset lie, and whether every file of theirs can hold them.

Reads headers only: footers of parquet files, and of videos their size, length and frame count.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/dataset_reader.py (facts only).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from pipeline.datasets.base import DatasetPlace
from pipeline.datasets.lerobot.info import INFO_PATH, LeRobotInfo, require_feature
from pipeline.datasets.lerobot.table import ParquetTable
from pipeline.datasets.manifest.paths import resolve_inside
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.datasets.video import VideoHeader, count_frames, read_header
from pipeline.errors import DatasetError

_NAMED: Final = 3  # missing files that a message names
_SURPLUS: Final = 2  # times the rows that the index lists; rows of nobody are read with the others
_FEW_ROWS: Final = 1_000_000  # however few the index lists; some 100 MB in memory

_T = TypeVar("_T")


@dataclass(frozen=True)
class Clip:
    """A stretch of a video file."""

    path: Path
    start_s: float
    """Seconds from the beginning of the file to the episode's time 0."""


@dataclass(frozen=True)
class EpisodeFiles:
    """Where an episode lies."""

    number: int
    length: int
    table: Path
    first_index: int | None
    """Value of `index` in the episode's first row; None where its files hold this episode only."""
    clips: dict[str, Clip]
    """By view key; views in image columns have none."""


@dataclass(frozen=True)
class LocatedEpisodes:
    """What the index of a dataset says of its episodes."""

    wanted: tuple[EpisodeFiles, ...]
    """Where the wanted ones lie, ordered by number; at least one."""
    num_indexed: int
    """Number of all episodes of the dataset."""
    rows_of: Mapping[Path, int]
    """Rows of all episodes of a table, wanted or not."""


class FileFinder:
    """Absolute paths of a dataset's files, each resolved once."""

    def __init__(self, place: DatasetPlace) -> None:
        """Remember where to look."""
        self._place = place
        self._found: dict[str, Path] = {}

    def find(self, relative: str) -> Path:
        """Return where a file lies or would lie.

        Raises:
            DatasetError: outside the dataset, which the manifest does not permit.
        """
        if relative not in self._found:
            outside = self._place.allow_outside
            path = resolve_inside(self._place.local_root, relative, allow_outside=outside)
            self._found[relative] = path
        return self._found[relative]


class HeaderChecks:
    """Holds the files of all episodes against what is asked of them, opening each once."""

    def __init__(self, place: DatasetPlace, info: LeRobotInfo, located: LocatedEpisodes) -> None:
        """Remember what to check."""
        self._place, self._info, self._located = place, info, located
        self._episodes = located.wanted

    def run(self) -> dict[str, dict[Path, tuple[int, int]]]:
        """Check every file, and return (height, width) of every video by view key and path.

        Raises:
            DatasetError: a key is no such feature, or a file is missing, damaged or too short.
        """
        for key in self._place.number_keys:
            require_feature(self._place.local_root, self._info, key, ("numbers",))
        kinds = view_kinds(self._place, self._info)
        self._require_files()
        self._require_columns([key for key, kind in kinds.items() if kind == "image"])
        return {key: self._checked_videos(key) for key, kind in kinds.items() if kind == "video"}

    def _require_files(self) -> None:
        """Name missing files, of all kinds at once, before any is opened."""
        users: dict[Path, int] = {}
        for files in self._episodes:
            for path in (files.table, *(clip.path for clip in files.clips.values())):
                users.setdefault(path, files.number)
        missing = [path for path in users if not path.is_file()]
        if missing:
            named = ", ".join(f"{path} (episode {users[path]})" for path in missing[:_NAMED])
            more = ", ..." if len(missing) > _NAMED else ""
            raise DatasetError(
                f"{self._place.local_root}: expected {len(users)} files for {len(self._episodes)} "
                f"episodes, found {len(missing)} of them missing: {named}{more}; download the "
                "rest, or say which episodes are there: `episodes = {only = [..]}` in the manifest"
            )

    def _require_columns(self, image_keys: list[str]) -> None:
        needed = {*self._place.number_keys, *image_keys, "episode_index"}
        for path, users in _grouped((files.table, files) for files in self._episodes).items():
            table = ParquetTable(path)
            table.close()
            is_shared = users[0].first_index is not None
            wanted = {*needed, "index"} if is_shared else needed
            if absent := sorted(wanted.difference(table.columns)):
                raise DatasetError(
                    f"{path}: expected columns {', '.join(absent)}, which {INFO_PATH} lists, "
                    f"found {', '.join(table.columns[:20])}; record or download the file again"
                )
            num_rows = sum(files.length for files in users)
            if table.num_rows < num_rows or (table.num_rows > num_rows and not is_shared):
                raise DatasetError(
                    f"{path}: expected {num_rows} rows for {_span(users)}, found "
                    f"{table.num_rows}; record or download the file again, or {LEAVE_OUT}"
                )
            num_listed = self._located.rows_of[path]
            if table.num_rows > max(_SURPLUS * num_listed, _FEW_ROWS):
                raise DatasetError(
                    f"{path}: expected the {num_listed} rows that the index lists, found "
                    f"{table.num_rows}; write the file without the others"
                )

    def _checked_videos(self, key: str) -> dict[Path, tuple[int, int]]:
        """Hold every file of a camera against its episodes; return (height, width) of each."""
        sizes = {}
        for path, users in _grouped((f.clips[key].path, f) for f in self._episodes).items():
            header = read_header(path)
            self._require_length(key, path, header, users)
            sizes[path] = header.size
        return sizes

    def _require_length(
        self, key: str, path: Path, header: VideoHeader, users: list[EpisodeFiles]
    ) -> None:
        num_steps = sum(files.length for files in users)
        num_frames, is_alone = header.num_frames, users[0].first_index is None
        if is_alone and num_frames != num_steps:
            num_frames = count_frames(path)  # of those that are shown: an edit list hides some
        if num_frames is not None and num_frames < num_steps:
            raise DatasetError(
                f"{path}: {key}: expected {num_steps} frames for {_span(users)}, found "
                f"{num_frames}; the camera stopped early or the file is incomplete: record "
                f"or download it again, or {LEAVE_OUT}"
            )
        if num_frames is not None and num_frames > num_steps and is_alone:
            raise DatasetError(
                f"{path}: {key}: expected {num_steps} frames for {_span(users)}, one a row, found "
                f"{num_frames}: it is open which row each belongs to; record or encode the video "
                f"again, or {LEAVE_OUT}"
            )
        half = 0.5 / self._info.fps
        end, before = 0.0, None
        for files in sorted(users, key=lambda files: files.clips[key].start_s):
            start = files.clips[key].start_s
            if before is not None and start < end - half:
                raise DatasetError(
                    f"{path}: {key}: expected episode {files.number} to begin after episode "
                    f"{before}, which lasts until {end:.4f} s, found {start:.4f} s; their times "
                    "in the episodes' index are wrong, download or write it again"
                )
            end, before = start + files.length / self._info.fps, files.number
            if header.end_s is not None and end - 1 / self._info.fps > header.end_s + half:
                raise DatasetError(
                    f"{path}: {key}: expected frames until {end:.4f} s for episode "
                    f"{files.number}, found that the file ends at {header.end_s:.4f} s; the "
                    f"camera stopped early: record or download it again, or {LEAVE_OUT}"
                )


def view_kinds(place: DatasetPlace, info: LeRobotInfo) -> dict[str, str]:
    """Say of every view whether it is a `video` or an `image` column.

    Raises:
        DatasetError: a view key is no colour camera of the dataset.
    """
    kinds = ("video", "image")
    return {
        key: require_feature(place.local_root, info, key, kinds).kind for key in place.view_keys
    }


def require_all_numbers(where: Path, numbers: Iterable[int], info: LeRobotInfo) -> None:
    """Refuse an index that skips or repeats an episode, or is not as long as `info` says.

    Raises:
        DatasetError: naming the first number that is out of order.
    """
    found = list(numbers)
    wrong = next((pair for pair in enumerate(found) if pair[0] != pair[1]), None)
    if wrong:
        raise DatasetError(
            f"{where}: expected episodes 0 to {len(found) - 1}, each once, found episode_index "
            f"{wrong[1]} where {wrong[0]} belongs; the index is incomplete, download it again"
        )
    if not found or (info.total_episodes is not None and info.total_episodes != len(found)):
        raise DatasetError(
            f"{where}: expected {info.total_episodes or 'some'} episodes as {INFO_PATH} says, "
            f"found {len(found)}; the index is incomplete, download it again"
        )


def _grouped(pairs: Iterable[tuple[Path, _T]]) -> dict[Path, list[_T]]:
    groups: defaultdict[Path, list[_T]] = defaultdict(list)
    for path, value in pairs:
        groups[path].append(value)
    return groups


def _span(users: list[EpisodeFiles]) -> str:
    numbers = sorted(files.number for files in users)
    return (
        f"episode {numbers[0]}" if len(numbers) == 1 else f"episodes {numbers[0]} to {numbers[-1]}"
    )
