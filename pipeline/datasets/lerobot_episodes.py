"""Where the episodes of a LeRobot dataset lie, and whether every file of theirs can hold them.

Reads headers only: footers of parquet files, and of videos their size, length and frame count.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/dataset_reader.py (facts only).
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from pipeline.datasets.base import DatasetPlace
from pipeline.datasets.lerobot_info import INFO_PATH, LeRobotInfo, require_feature
from pipeline.datasets.lerobot_table import ParquetTable
from pipeline.datasets.paths import resolve_inside
from pipeline.datasets.video import VideoHeader, read_header
from pipeline.errors import DatasetError

_NAMED: Final = 3  # missing files that a message names

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
    """Value of `index` in the episode's first row; None where the table holds this episode only."""
    clips: dict[str, Clip]
    """By view key; views in image columns have none."""


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
            path = resolve_inside(self._place.root, relative, allow_outside=outside)
            self._found[relative] = path
        return self._found[relative]


class HeaderChecks:
    """Holds the files of all episodes against what is asked of them, opening each once."""

    def __init__(
        self, place: DatasetPlace, info: LeRobotInfo, episodes: Sequence[EpisodeFiles]
    ) -> None:
        """Remember what to check."""
        self._place, self._info, self._episodes = place, info, episodes

    def run(self) -> dict[str, dict[Path, tuple[int, int]]]:
        """Check every file, and return (height, width) of every video by view key and path.

        Raises:
            DatasetError: a key is no such feature, or a file is missing, damaged or too short.
        """
        for key in self._place.number_keys:
            require_feature(self._place.root, self._info, key, ("numbers",))
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
                f"{self._place.root}: expected {len(users)} files for {len(self._episodes)} "
                f"episodes, found {len(missing)} of them missing: {named}{more}; download the rest"
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
                    f"{table.num_rows}; record or download the file again"
                )

    def _checked_videos(self, key: str) -> dict[Path, tuple[int, int]]:
        """Hold every file of a camera against its episodes; return (height, width) of each."""
        sizes = {}
        for path, users in _grouped((f.clips[key].path, f) for f in self._episodes).items():
            header = read_header(path)
            require_stated_size(self._info, key, header.size, f"{path}: {key}")
            self._require_length(key, path, header, users)
            sizes[path] = header.size
        return sizes

    def _require_length(
        self, key: str, path: Path, header: VideoHeader, users: list[EpisodeFiles]
    ) -> None:
        num_steps = sum(files.length for files in users)
        if header.num_frames is not None and header.num_frames < num_steps:
            raise DatasetError(
                f"{path}: {key}: expected {num_steps} frames for {_span(users)}, found "
                f"{header.num_frames}; the camera stopped early or the file is incomplete: record "
                "or download it again, or leave these episodes out"
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
                    "camera stopped early: record or download it again"
                )


def view_kinds(place: DatasetPlace, info: LeRobotInfo) -> dict[str, str]:
    """Say of every view whether it is a `video` or an `image` column.

    Raises:
        DatasetError: a view key is no colour camera of the dataset.
    """
    kinds = ("video", "image")
    return {key: require_feature(place.root, info, key, kinds).kind for key in place.view_keys}


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


def require_stated_size(info: LeRobotInfo, key: str, size: tuple[int, int], where: str) -> None:
    """Refuse frames that are not of the size that `meta/info.json` says, where it says one.

    Raises:
        DatasetError: naming both sizes.
    """
    stated = info.features[key].frame_size
    if stated is not None and stated != size:
        raise DatasetError(
            f"{where}: expected frames of {stated[0]}x{stated[1]} as {INFO_PATH} says, found "
            f"{size[0]}x{size[1]}; correct one of them"
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
