"""Where the episodes of a LeRobot dataset lie, and whether every file of theirs can hold them.

Reads headers only: footers of parquet files, and of videos their size, length and frame count.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/dataset_reader.py (facts only).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from pipeline.datasets.base import DatasetPlace
from pipeline.datasets.lerobot.info import INFO_PATH, LeRobotInfo, require_feature
from pipeline.datasets.lerobot.table import ParquetTable
from pipeline.datasets.manifest.paths import resolve_inside
from pipeline.datasets.manifest.selection import LEAVE_OUT, wanted_numbers
from pipeline.datasets.video import VideoHeader, count_frames, read_header
from pipeline.errors import DatasetError

_NAMED: Final = 3  # missing files that a message names
_SURPLUS: Final = 2  # times the rows that the index lists; rows of nobody are read with the others
_MAX_EPISODES: Final = 10_000_000  # that are looked for in an index, whatever its total says
_FEW_ROWS: Final = 1_000_000  # however few the index lists; some 100 MB in memory

_T = TypeVar("_T")


@dataclass(frozen=True)
class Clip:
    """The frames of a video file that are an episode's."""

    path: Path
    start_s: float
    """Seconds from the beginning of the file to the episode's time 0."""
    end_s: float
    """Seconds from the beginning of the file to the end of the episode's last frame; infinity
    where the file holds this episode only."""


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
    task: str | None = None
    """What the index says of its task."""


@dataclass(frozen=True)
class LocatedEpisodes:
    """What the index of a dataset says of its episodes."""

    wanted: tuple[EpisodeFiles, ...]
    """Where the wanted ones are, ordered by number; at least one."""
    num_indexed: int
    """Number of all episodes of the dataset."""
    others: tuple[EpisodeFiles, ...] = ()
    """Those that are not wanted and share files with the wanted ones; one whose row of the index
    contradicts itself is left out."""


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
        self._place, self._info = place, info
        self._episodes, self._others = located.wanted, located.others

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
        others = _grouped((files.table, files) for files in self._others)
        for path, users in _grouped((files.table, files) for files in self._episodes).items():
            table = ParquetTable(path)
            table.close()
            is_shared = users[0].first_index is not None
            wanted = {*needed, "index"} if is_shared else needed
            if absent := sorted(wanted.difference(table.columns)):
                raise DatasetError(
                    f"{path}: expected columns {', '.join(absent)}, which {INFO_PATH} lists, "
                    f"found {', '.join(table.columns[:20])}; download the file again"
                )
            num_rows = sum(files.length for files in users)
            if not is_shared and len(users) == 1 and table.num_rows != num_rows:
                self._refuse_length(users[0], table.num_rows)
            if table.num_rows < num_rows or (table.num_rows > num_rows and not is_shared):
                raise DatasetError(
                    f"{path}: expected {num_rows} rows for {_span(users)}, found "
                    f"{table.num_rows}; download the file again, or {LEAVE_OUT}"
                )
            num_listed = num_rows + sum(files.length for files in others.get(path, ()))
            if table.num_rows > max(_SURPLUS * num_listed, _FEW_ROWS):
                raise DatasetError(
                    f"{path}: expected the {num_listed} rows that the index lists, found "
                    f"{table.num_rows}; write the file without the others"
                )

    def _refuse_length(self, files: EpisodeFiles, num_rows: int) -> NoReturn:
        """Say which of index, table and videos disagrees with the others."""
        frames = {read_header(clip.path).num_frames for clip in files.clips.values()}
        advice = f"download the file again, or {LEAVE_OUT}"
        if frames == {num_rows}:
            advice = f"its videos have {num_rows} frames too: correct `length` in meta/episodes"
        raise DatasetError(
            f"{files.table}: expected {files.length} rows for episode {files.number}, as its "
            f"`length` says, found {num_rows}; {advice}"
        )

    def _checked_videos(self, key: str) -> dict[Path, tuple[int, int]]:
        """Hold every file of a camera against its episodes; return (height, width) of each.

        Against all of them: that a file is too short, or that two clips overlap, says nothing of
        which episode's frames are wrong, so that leaving one out makes none of the others right.
        """
        sizes = {}
        wanted = {files.number for files in self._episodes}
        others = _grouped((f.clips[key].path, f) for f in self._others if key in f.clips)
        for path, users in _grouped((f.clips[key].path, f) for f in self._episodes).items():
            header = read_header(path)
            everyone = sorted(
                users + others.get(path, []),
                key=lambda files: (files.clips[key].start_s, files.number),
            )
            self._require_length(key, path, header, everyone)
            self._require_apart(key, path, everyone, wanted)
            sizes[path] = header.size
        return sizes

    def _require_length(
        self, key: str, path: Path, header: VideoHeader, users: list[EpisodeFiles]
    ) -> None:
        num_steps = sum(files.length for files in users)
        num_frames, is_alone = header.num_frames, users[0].first_index is None
        advice = "download or convert the dataset again, or leave out all episodes of this file"
        if is_alone:
            advice = f"copy or download it again, or {LEAVE_OUT}"
            if num_frames != num_steps:
                num_frames = count_frames(path)  # of those that are shown: an edit list hides some
        if num_frames is not None and num_frames < num_steps:
            raise DatasetError(
                f"{path}: {key}: expected {num_steps} frames for {_span(users)}, found "
                f"{num_frames}: the camera stopped early, or the file is not the one that the "
                f"index describes; {advice}"
            )
        if num_frames is not None and num_frames > num_steps and is_alone:
            raise DatasetError(
                f"{path}: {key}: expected {num_steps} frames for {_span(users)}, one a row, found "
                f"{num_frames}: it is open which row each belongs to; encode the video "
                f"again, or {LEAVE_OUT}"
            )
        last = max(users, key=lambda files: self._rows_end(files, key))
        end = self._rows_end(last, key)
        if (
            header.end_s is not None
            and end - 0.5 / self._info.fps > header.end_s + 1 / self._info.fps
        ):
            raise DatasetError(
                f"{path}: {key}: expected frames until {end:.4f} s for episode {last.number}, "
                f"found that the file ends at {header.end_s:.4f} s: the camera stopped early, or "
                f"the file is not the one that the index describes; {advice}"
            )

    def _require_apart(
        self, key: str, path: Path, users: list[EpisodeFiles], wanted: set[int]
    ) -> None:
        """Refuse a wanted episode whose clip is too short for its rows, or overlaps another."""
        half, before = 0.5 / self._info.fps, None
        for files in users:
            clip = files.clips[key]
            last_s = 0.0
            if before is not None:
                last_s = max(before.clips[key].end_s, self._rows_end(before, key))
                is_asked = bool(wanted & {files.number, before.number})
                if is_asked and clip.start_s < last_s - half:
                    raise DatasetError(
                        f"{path}: {key}: expected episode {files.number} to begin after episode "
                        f"{before.number}, which lasts until {last_s:.4f} s, found "
                        f"{clip.start_s:.4f} s: the index gives both the same frames; download or "
                        "convert the dataset again, or leave out both"
                    )
            rows_end = self._rows_end(files, key)
            if files.number in wanted and clip.end_s < rows_end - half:
                raise DatasetError(
                    f"{path}: {key}: expected episode {files.number} to last until "
                    f"{rows_end:.4f} s, as its {files.length} rows do, found that its clip ends at "
                    f"{clip.end_s:.4f} s; correct `fps` in {INFO_PATH} if the video has another "
                    f"rate, download or convert the dataset again, or {LEAVE_OUT}"
                )
            if before is None or max(clip.end_s, rows_end) > last_s:
                before = files

    def _rows_end(self, files: EpisodeFiles, key: str) -> float:
        return files.clips[key].start_s + files.length / self._info.fps


def task_of(listed: object) -> str | None:
    """Return the task of an episode from the list of them that an index keeps."""
    tasks = listed if isinstance(listed, list) else [listed]
    return " / ".join(task for task in tasks if isinstance(task, str) and task) or None


def view_kinds(place: DatasetPlace, info: LeRobotInfo) -> dict[str, str]:
    """Say of every view whether it is a `video` or an `image` column.

    Raises:
        DatasetError: a view key is no color camera of the dataset.
    """
    kinds = ("video", "image")
    return {
        key: require_feature(place.local_root, info, key, kinds).kind for key in place.view_keys
    }


def choose_numbers(
    place: DatasetPlace, info: LeRobotInfo, index: Path, found: Iterable[int | None]
) -> frozenset[int]:
    """Return the numbers of the wanted episodes, each of which an index must list once.

    What the manifest leaves out may be absent or doubled, and totals need not count it.

    Args:
        place: says which episodes are wanted.
        info: whose `total_episodes` says how many there are.
        index: the file or folder that lists the episodes, for messages.
        found: the numbers that it lists, None for rows that do not read.

    Raises:
        DatasetError: a wanted episode is absent, doubled or too many, or none is wanted.
    """
    listed = list(found)
    counts = Counter(number for number in listed if number is not None)
    num_unreadable, total = listed.count(None), info.total_episodes
    num = min(max(total or 0, max(counts, default=-1) + 1), _MAX_EPISODES)
    absent = [number for number in range(num) if number not in counts and place.keeps(number)]
    if absent:
        says = f", of {total} as {INFO_PATH} says" if total is not None else ""
        raise DatasetError(
            f"{index}: expected a row for episode {absent[0]}{says}, found none "
            f"({len(absent)} absent in all, {num_unreadable} rows do not read); download "
            f"`meta` again, or where the episode was removed on purpose, {LEAVE_OUT}"
        )
    wanted = wanted_numbers(place, counts)
    doubled = [number for number in sorted(wanted) if counts[number] > 1]
    if doubled:
        raise DatasetError(
            f"{index}: expected one row for episode {doubled[0]}, found {counts[doubled[0]]}; "
            f"download `meta` again, or {LEAVE_OUT}"
        )
    if total is not None and len(counts) > total and max(wanted) >= total:
        raise DatasetError(
            f"{index}: expected {total} episodes as total_episodes of {INFO_PATH} says, found "
            f"{len(counts)}; correct total_episodes there, or leave out those from {total} on "
            "with `episodes = {except = [..]}` in the manifest"
        )
    return wanted


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
