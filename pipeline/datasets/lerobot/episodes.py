"""The files of the episodes of a LeRobot dataset, checked by their headers.

Reads footers of parquet files, and size, length and frame count of videos.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/dataset_reader.py (facts only).
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from pipeline.datasets.base import DatasetConfig, Episode
from pipeline.datasets.lerobot.info import INFO_PATH, LeRobotInfo
from pipeline.datasets.lerobot.table import ParquetTable
from pipeline.datasets.manifest.paths import resolve_inside
from pipeline.datasets.manifest.selection import LEAVE_OUT, wanted_numbers
from pipeline.datasets.video import read_clock, read_header
from pipeline.errors import DatasetError

_NAMED: Final = 3  # missing files that a message names


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
class EpisodeFiles(Episode):
    """An episode, and its rows and clips in its files."""

    path: Path
    first_index: int | None
    """Value of `index` in the episode's first row; None if its files contain only this episode."""
    clips: dict[str, Clip]
    """By view key; views in image columns have none."""
    task: str | None

    def rows_end_s(self, key: str, fps: float) -> float:
        """Return the seconds in a camera's video at which the last row ends."""
        return self.clips[key].start_s + self.length / fps


class IndexRow(BaseModel):
    """An episode in the index; versions add where it is stored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    episode_index: NonNegativeInt
    length: PositiveInt
    tasks: Any = None

    @property
    def task(self) -> str | None:
        """Its task in words."""
        tasks = self.tasks if isinstance(self.tasks, list) else [self.tasks]
        return " / ".join(task for task in tasks if isinstance(task, str) and task) or None


FindFile = Callable[..., Path]
"""Fills a path template with names (DatasetError: it has other fields, or leads outside)."""


def file_finder(config: DatasetConfig) -> FindFile:
    """Return a `FindFile` that resolves each path once."""
    root = config.local_root

    @functools.cache
    def find(template: str, **names: int | str) -> Path:
        try:
            relative = template.format(**names)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise DatasetError(
                f"{root / INFO_PATH}: expected a path with fields {', '.join(sorted(names))}, "
                f"found {template!r}; correct it"
            ) from error
        return resolve_inside(root, relative, allow_outside=config.allow_outside)

    return find


def split_rows(
    config: DatasetConfig, info: LeRobotInfo, index: Path, rows: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split an index into the rows of the kept episodes, and the others, which may be damaged.

    DatasetError: a kept episode is missing or doubled, or none is kept.
    """
    found: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        try:
            found[int(row["episode_index"])].append(row)
        except (KeyError, TypeError, ValueError):
            found[-1].append(row)
    num = max(info.total_episodes or 0, max(found, default=-1) + 1)
    kept = wanted_numbers(config, range(num))
    for number in sorted(kept):
        if len(found[number]) != 1:
            raise DatasetError(
                f"{index}: expected one row for episode {number} of {num}, found "
                f"{len(found[number])}; download `meta` again, or {LEAVE_OUT}"
            )
    others = [row for number, same in found.items() if number not in kept for row in same]
    return [found[number][0] for number in sorted(kept)], others


def check_headers(
    config: DatasetConfig,
    fps: float,
    episodes: Sequence[EpisodeFiles],
    excluded: Sequence[EpisodeFiles],
    video_keys: Iterable[str],
) -> dict[str, dict[Path, tuple[int, int]]]:
    """Check every file of the kept episodes, opening each once.

    Returns (height, width) of every video by view key and path.
    DatasetError: a file is missing, damaged or too short.
    """
    _require_files(config, episodes)
    for path, users in _grouped((files.path, files) for files in episodes).items():
        _check_table(path, users)
    sizes: dict[str, dict[Path, tuple[int, int]]] = {}
    for key in video_keys:
        clips = _grouped((files.clips[key].path, files) for files in episodes)
        others = _grouped((files.clips[key].path, files) for files in excluded)
        sizes[key] = {
            path: _check_video(key, path, users, others.get(path, []), fps)
            for path, users in clips.items()
        }
    return sizes


def _require_files(config: DatasetConfig, episodes: Sequence[EpisodeFiles]) -> None:
    """Name missing files, of all kinds at once, before any is opened."""
    users: dict[Path, int] = {}
    for files in episodes:
        for path in (files.path, *(clip.path for clip in files.clips.values())):
            users.setdefault(path, files.number)
    missing = [f"{path} (episode {users[path]})" for path in users if not path.is_file()]
    if missing:
        raise DatasetError(
            f"{config.local_root}: expected {len(users)} files for {len(episodes)} episodes, found "
            f"{len(missing)} of them missing: {', '.join(missing[:_NAMED])}; download the rest, or "
            "list the episodes that are complete: `episodes = {only = [..]}` in the manifest"
        )


def _check_table(path: Path, users: list[EpisodeFiles]) -> None:
    table = ParquetTable(path)
    table.close()
    num_rows, is_shared = sum(files.length for files in users), users[0].first_index is not None
    if table.num_rows < num_rows or (table.num_rows > num_rows and not is_shared):
        raise DatasetError(
            f"{path}: expected {num_rows} rows for {_span(users)}, by `length` in meta/episodes, "
            f"found {table.num_rows}; download the file again, convert the dataset again if its "
            f"index lists the wrong file or `length`, or {LEAVE_OUT}"
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
        num_frames = len(read_clock(path).pts)  # of the shown ones: an edit list hides some
    if num_frames is not None and num_frames > num_steps and is_alone:
        raise DatasetError(
            f"{where}: expected {num_steps} frames for {_span(users)}, one per row, found "
            f"{num_frames}: frames cannot be assigned to rows; encode it again, or {LEAVE_OUT}"
        )
    end = max(files.rows_end_s(key, fps) for files in all_users)
    is_short = num_frames is not None and num_frames < num_steps
    if is_short or (header.end_s is not None and end - 1.5 / fps > header.end_s):
        raise DatasetError(
            f"{where}: expected {num_steps} frames for {_span(all_users)}, until {end:.4f} s, "
            f"found {num_frames} frames until {header.end_s} s; download or convert the dataset "
            "again, or leave out all episodes of this file"
        )
    for files in users:
        end_s, rows_end_s = files.clips[key].end_s, files.rows_end_s(key, fps)
        if end_s < rows_end_s - 0.5 / fps:
            raise DatasetError(
                f"{where}: expected episode {files.number} to end at {rows_end_s:.4f} s, found "
                f"{end_s:.4f} s; correct `fps` in meta/info.json, or {LEAVE_OUT}"
            )
    last, *ordered = sorted(all_users, key=lambda each: (each.clips[key].start_s, each.number))
    last_end = max(last.clips[key].end_s, last.rows_end_s(key, fps))
    for files in ordered:
        is_wanted = last in users or files in users
        if is_wanted and files.clips[key].start_s < last_end - 0.5 / fps:
            raise DatasetError(
                f"{where}: expected episode {files.number} to begin after episode {last.number}, "
                f"which ends at {last_end:.4f} s, found {files.clips[key].start_s:.4f} s, the same "
                "frames for both; download or convert the dataset again, or leave out both"
            )
        end = max(files.clips[key].end_s, files.rows_end_s(key, fps))
        if end > last_end:
            last, last_end = files, end
    return header.size


def _grouped(pairs: Iterable[tuple[Path, EpisodeFiles]]) -> dict[Path, list[EpisodeFiles]]:
    groups: defaultdict[Path, list[EpisodeFiles]] = defaultdict(list)
    for path, files in pairs:
        groups[path].append(files)
    return groups


def _span(users: list[EpisodeFiles]) -> str:
    numbers = sorted(files.number for files in users)
    return (
        f"episode {numbers[0]}" if len(numbers) == 1 else f"episodes {numbers[0]} to {numbers[-1]}"
    )
