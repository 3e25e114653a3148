"""The files of the episodes of a LeRobot dataset, checked by their headers.

Reads footers of parquet files, and size, length and frame count of videos.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/dataset_reader.py (facts only).
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.lerobot.info import INFO_PATH, LeRobotInfo, fill_template, require_feature
from pipeline.datasets.lerobot.table import ParquetTable
from pipeline.datasets.manifest.paths import resolve_inside
from pipeline.datasets.manifest.selection import LEAVE_OUT, wanted_numbers
from pipeline.datasets.video import count_frames, read_header
from pipeline.errors import DatasetError

_NAMED: Final = 3  # missing files that a message names

_T = TypeVar("_T")


@dataclass(frozen=True)
class Clip:
    """The frames of an episode in a video file."""

    path: Path
    start_s: float
    """Seconds from the beginning of the file to the episode's time 0."""
    end_s: float
    """Seconds from the beginning of the file to the end of the episode's last frame; infinity
    if the file contains only this episode."""


@dataclass(frozen=True)
class EpisodeFiles:
    """The files of an episode, and its rows and clips in them."""

    number: int
    length: int
    table: Path
    first_index: int | None
    """Value of `index` in the episode's first row; None if its files contain only this episode."""
    clips: dict[str, Clip]
    """By view key; views in image columns have none."""
    task: str | None

    def rows_end_s(self, key: str, fps: float) -> float:
        """Return the seconds in a camera's video at which the last row ends."""
        return self.clips[key].start_s + self.length / fps


@dataclass(frozen=True)
class LocatedEpisodes:
    """The episodes of a dataset's index."""

    wanted: tuple[EpisodeFiles, ...]
    """The kept episodes, ordered by number; at least one."""
    num_indexed: int
    """Number of all episodes of the dataset."""
    excluded: tuple[EpisodeFiles, ...] = ()
    """The others that share files with them, without those whose row is damaged."""


def file_finder(config: DatasetConfig) -> Callable[..., Path]:
    """Return a function that fills a path template with names, and resolves each path once.

    It raises DatasetError for a template with other fields, and for a path outside the root.
    """
    root = config.local_root

    @functools.cache
    def find(template: str, **names: int | str) -> Path:
        relative = fill_template(template, names, f"{root / INFO_PATH}")
        return resolve_inside(root, relative, allow_outside=config.allow_outside)

    return find


def task_of(listed: object) -> str | None:
    """Return an episode's task from the index's list of tasks."""
    tasks = listed if isinstance(listed, list) else [listed]
    return " / ".join(task for task in tasks if isinstance(task, str) and task) or None


def view_kinds(config: DatasetConfig, info: LeRobotInfo) -> dict[str, str]:
    """Return per view whether it is a `video` or an `image` column.

    Raises:
        DatasetError: a view key is not a color camera of the dataset.
    """
    kinds = ("video", "image")
    return {
        key: require_feature(config.local_root, info, key, kinds).kind for key in config.view_keys
    }


def split_rows(
    config: DatasetConfig, info: LeRobotInfo, index: Path, rows: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Split an index into the rows of the kept episodes, by `episode_index`, and the others.

    The number of all episodes is the third value. Rows of excluded episodes may be damaged.

    Raises:
        DatasetError: a kept episode is missing or doubled, or none is kept.
    """
    numbers = [_whole(row.get("episode_index")) for row in rows]
    counts = Counter(number for number in numbers if number is not None)
    num = max(info.total_episodes or 0, max(counts, default=-1) + 1)
    wrong = [number for number in range(num) if counts[number] != 1 and config.keeps(number)]
    if wrong:
        raise DatasetError(
            f"{index}: expected one row for episode {wrong[0]} of {num}, found {counts[wrong[0]]} "
            f"({len(wrong)} such episodes in all); download `meta` again, or where the episode was "
            f"removed on purpose, {LEAVE_OUT}"
        )
    wanted = wanted_numbers(config, counts)
    by_number = dict(zip(numbers, rows, strict=True))
    others = [row for number, row in zip(numbers, rows, strict=True) if number not in wanted]
    return [by_number[number] for number in sorted(wanted)], others, num


def _whole(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():  # of a column with empty rows
        value = int(value)
    return value if isinstance(value, int) else None


def integer(row: dict[str, Any], key: str, index: Path, least: int = 0) -> int:
    """Return a whole number of a row of an index.

    Raises:
        DatasetError: the value is something else, or below `least`.
    """
    value = _whole(row.get(key))
    if value is None or value < least:
        raise DatasetError(
            f"{index}: episode {row.get('episode_index')}: {key}: expected a whole number of at "
            f"least {least}, found {row.get(key)}; download `meta` again, or {LEAVE_OUT}"
        )
    return value


def check_headers(
    config: DatasetConfig, info: LeRobotInfo, located: LocatedEpisodes
) -> dict[str, dict[Path, tuple[int, int]]]:
    """Check every file of the kept episodes, opening each once.

    Returns:
        (height, width) of every video by view key and path.

    Raises:
        DatasetError: a key is not a feature, or a file is missing, damaged or too short.
    """
    for key in config.number_keys:
        require_feature(config.local_root, info, key, ("numbers",))
    episodes = located.wanted
    _require_files(config, episodes)
    for path, users in _grouped((files.table, files) for files in episodes).items():
        _check_table(path, users)
    sizes: dict[str, dict[Path, tuple[int, int]]] = {}
    for key, kind in view_kinds(config, info).items():
        if kind == "video":
            clips = _grouped((files.clips[key].path, files) for files in episodes)
            others = _grouped((files.clips[key].path, files) for files in located.excluded)
            sizes[key] = {
                path: _check_video(key, path, users, others.get(path, []), info.fps)
                for path, users in clips.items()
            }
    return sizes


def _require_files(config: DatasetConfig, episodes: tuple[EpisodeFiles, ...]) -> None:
    """Name missing files, of all kinds at once, before any is opened."""
    users: dict[Path, int] = {}
    for files in episodes:
        for path in (files.table, *(clip.path for clip in files.clips.values())):
            users.setdefault(path, files.number)
    missing = [path for path in users if not path.is_file()]
    if missing:
        named = ", ".join(f"{path} (episode {users[path]})" for path in missing[:_NAMED])
        more = ", ..." if len(missing) > _NAMED else ""
        raise DatasetError(
            f"{config.local_root}: expected {len(users)} files for {len(episodes)} episodes, found "
            f"{len(missing)} of them missing: {named}{more}; download the rest, or list the "
            "episodes that are complete: `episodes = {only = [..]}` in the manifest"
        )


def _check_table(path: Path, users: list[EpisodeFiles]) -> None:
    table = ParquetTable(path)
    table.close()
    num_rows, is_shared = sum(files.length for files in users), users[0].first_index is not None
    if table.num_rows < num_rows or (table.num_rows > num_rows and not is_shared):
        raise DatasetError(
            f"{path}: expected {num_rows} rows for {_span(users)}, by `length` in meta/episodes, "
            f"found {table.num_rows}; correct `length` if the videos have {table.num_rows} frames "
            f"too; else download the file again, convert the dataset again if its index lists "
            f"the wrong file, or {LEAVE_OUT}"
        )


def _check_video(
    key: str, path: Path, users: list[EpisodeFiles], others: list[EpisodeFiles], fps: float
) -> tuple[int, int]:
    """Compare a video with the clips of its episodes; return its (height, width).

    Frames that are missing shift those of later episodes, and of two episodes with the same frames
    one has those of the other; so the excluded episodes of the file, `others`, count too.
    """
    header, where, all_users = read_header(path), f"{path}: {key}", [*users, *others]
    num_steps, num_frames = sum(files.length for files in all_users), header.num_frames
    is_alone = users[0].first_index is None
    if is_alone and num_frames != num_steps:
        num_frames = count_frames(path)  # of the shown ones: an edit list hides some
    if num_frames is not None and num_frames > num_steps and is_alone:
        raise DatasetError(
            f"{where}: expected {num_steps} frames for {_span(users)}, one per row, found "
            f"{num_frames}: frames cannot be assigned to rows; encode the video again, or "
            f"{LEAVE_OUT}"
        )
    end = max(files.rows_end_s(key, fps) for files in all_users)
    is_short = num_frames is not None and num_frames < num_steps
    if is_short or (header.end_s is not None and end - 1.5 / fps > header.end_s):
        raise DatasetError(
            f"{where}: expected {num_steps} frames for {_span(all_users)}, until {end:.4f} s, "
            f"found {num_frames} frames until {header.end_s} s: the camera stopped early, or the "
            "index describes another file; download or convert the dataset again, or leave out "
            "all episodes of this file"
        )
    for files in users:
        rows_end = files.rows_end_s(key, fps)
        if files.clips[key].end_s < rows_end - 0.5 / fps:
            raise DatasetError(
                f"{where}: expected episode {files.number} to end at {rows_end:.4f} s, like its "
                f"{files.length} rows, found the end of its clip at {files.clips[key].end_s:.4f} "
                f"s; correct `fps` in {INFO_PATH} if the video has another rate, download or "
                f"convert the dataset again, or {LEAVE_OUT}"
            )
    last, *ordered = sorted(all_users, key=lambda each: (each.clips[key].start_s, each.number))
    last_end = max(last.clips[key].end_s, last.rows_end_s(key, fps))
    for files in ordered:
        is_wanted = last in users or files in users
        if is_wanted and files.clips[key].start_s < last_end - 0.5 / fps:
            raise DatasetError(
                f"{where}: expected episode {files.number} to begin after episode {last.number}, "
                f"which ends at {last_end:.4f} s, found {files.clips[key].start_s:.4f} s: the "
                "index assigns the same frames to both; download or convert the dataset again, or "
                "leave out both"
            )
        end = max(files.clips[key].end_s, files.rows_end_s(key, fps))
        if end > last_end:
            last, last_end = files, end
    return header.size


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
