"""LeRobotDataset v3.0: many episodes a parquet file and a video file, with an index in parquet.

The index says for every episode which rows are its own, and for every camera which file and from
which second to which; all of that differs from camera to camera. All of its rows are read, because
the frames of an episode end where those of another begin; what is wrong in a row matters only where
its episode is wanted.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/utils.py, dataset_metadata.py (facts
only).
"""

import contextlib
import itertools
import math
from operator import attrgetter
from pathlib import Path
from typing import Final

from pipeline.datasets.base import DatasetPlace
from pipeline.datasets.lerobot.episodes import (
    Clip,
    EpisodeFiles,
    FileFinder,
    LocatedEpisodes,
    choose_numbers,
    task_of,
    view_kinds,
)
from pipeline.datasets.lerobot.info import (
    INFO_PATH,
    LeRobotInfo,
    fill_template,
    read_info,
)
from pipeline.datasets.lerobot.reader import LeRobotReader
from pipeline.datasets.lerobot.table import ParquetTable
from pipeline.datasets.manifest.paths import require_small_file
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.errors import DatasetError

VERSIONS: Final = ("v3.0",)
INDEX_FOLDER: Final = "meta/episodes"
_DATA_PATH: Final = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO_PATH: Final = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_ROW_KEYS: Final = (  # the statistics beside them are most of the index, and are not read
    *("episode_index", "length", "data/chunk_index", "data/file_index"),
    *("dataset_from_index", "dataset_to_index"),
)
_FILE_KEYS: Final = ("chunk_index", "file_index")
_CLIP_TIMES: Final = ("from_timestamp", "to_timestamp")
_MAX_EXACT: Final = 2.0**53  # whole numbers below it are exact in float64
Row = dict[str, float]  # of the index, by column; NaN where a row has no value


class LeRobotV3Reader(LeRobotReader):
    """A LeRobot v3.0 dataset; implements `FormatReader`."""

    versions = VERSIONS

    def __init__(self, place: DatasetPlace) -> None:
        """Read the index and check every wanted file by its header; no frame is decoded.

        Raises:
            DatasetError: another version, an index that lacks a wanted episode, a key that is no
                such feature, no wanted episode, or a file that is missing, damaged, too short,
                or outside the root.
        """
        info = read_info(place.local_root, VERSIONS, allow_outside=place.allow_outside)
        super().__init__(place, info, _locate(place, info))


def _locate(place: DatasetPlace, info: LeRobotInfo) -> LocatedEpisodes:
    """Say of every episode, ordered by number, where its rows and clips are."""
    kinds = view_kinds(place, info)
    video_keys = [key for key, kind in kinds.items() if kind == "video"]
    rows = _read_index(place, video_keys)
    files = _RowReader(place, info, video_keys)
    numbers = [_whole(row["episode_index"]) for row, _ in rows]
    wanted = choose_numbers(place, info, files.folder, numbers)
    is_wanted = [number in wanted for number in numbers]
    found = [files.episode(row, task) for row, task in itertools.compress(rows, is_wanted)]
    used = {place for row, _ in itertools.compress(rows, is_wanted) for place in files.places(row)}
    others = []
    for (row, task), is_asked in zip(rows, is_wanted, strict=True):
        if not is_asked and not used.isdisjoint(files.places(row)):
            # A row that contradicts itself says nothing about the others of its file.
            with contextlib.suppress(DatasetError):
                others.append(files.episode(row, task))
    found.sort(key=attrgetter("number"))
    return LocatedEpisodes(tuple(found), max(filter(None, numbers), default=0) + 1, tuple(others))


class _RowReader:
    """Turns rows of the index into places of files."""

    def __init__(self, place: DatasetPlace, info: LeRobotInfo, video_keys: list[str]) -> None:
        self.folder = place.local_root / INDEX_FOLDER
        self._info, self._video_keys, self._finder = info, video_keys, FileFinder(place)
        self._where = f"{place.local_root / INFO_PATH}"
        self._found: dict[tuple[str, int, int], Path] = {}

    def places(self, row: Row) -> list[tuple[str, float, float]]:
        """Return which files a row names, as it has them."""
        return [
            (prefix, row[f"{prefix}chunk_index"], row[f"{prefix}file_index"])
            for prefix in ("data/", *(f"videos/{key}/" for key in self._video_keys))
        ]

    def episode(self, row: Row, task: str | None) -> EpisodeFiles:
        """Say where an episode is.

        Raises:
            DatasetError: a value is absent, or contradicts another one.
        """
        number, length = self._integer(row, "episode_index"), self._integer(row, "length")
        first = self._integer(row, "dataset_from_index")
        if length < 1:
            raise self._wrong(row, "length", "at least 1 step")
        if row["dataset_to_index"] != first + length:
            expected = f"dataset_from_index {first} + length {length}"
            raise self._wrong(row, "dataset_to_index", expected)
        clips = {}
        for key in self._video_keys:
            prefix = f"videos/{key}/"
            start_s, end_s = (row[f"{prefix}{name}"] for name in _CLIP_TIMES)
            for name in _CLIP_TIMES:
                if not math.isfinite(row[f"{prefix}{name}"]):
                    raise self._wrong(row, f"{prefix}{name}", "seconds")
            clips[key] = Clip(self._path(row, prefix, key), start_s, end_s)
        return EpisodeFiles(number, length, self._path(row, "data/"), first, clips, task)

    def _path(self, row: Row, prefix: str, key: str = "") -> Path:
        chunk, file = (self._integer(row, f"{prefix}{name}") for name in _FILE_KEYS)
        if (key, chunk, file) not in self._found:
            names: dict[str, int | str] = {"chunk_index": chunk, "file_index": file}
            if key:
                template, field = self._info.video_path or _VIDEO_PATH, "video_path"
                names["video_key"] = key
            else:
                template, field = self._info.data_path or _DATA_PATH, "data_path"
            relative = fill_template(template, names, f"{self._where}: {field}")
            self._found[key, chunk, file] = self._finder.find(relative)
        return self._found[key, chunk, file]

    def _integer(self, row: Row, key: str) -> int:
        value = _whole(row[key])
        if value is None:
            raise self._wrong(row, key, "a whole number")
        return value

    def _wrong(self, row: Row, key: str, expected: str) -> DatasetError:
        return DatasetError(
            f"{self.folder}: episode {row['episode_index']:.0f}: {key}: expected {expected}, found "
            f"{row[key]:.10g}; download `meta` again, or {LEAVE_OUT}"
        )


def _whole(value: float) -> int | None:
    return int(value) if value.is_integer() and 0 <= value < _MAX_EXACT else None


def _read_index(place: DatasetPlace, video_keys: list[str]) -> list[tuple[Row, str | None]]:
    """Read the columns of `meta/episodes` that say where things are, and the task, row by row."""
    folder = place.local_root / INDEX_FOLDER
    paths = sorted(  # macOS leaves its notes beside files as `._file-000.parquet`
        path.relative_to(place.local_root)
        for path in folder.glob("*/*.parquet")
        if not path.name.startswith(".")
    )
    if not paths:
        raise DatasetError(
            f"{folder}: expected the index of the episodes (chunk-000/file-000.parquet), found "
            "none; download it"
        )
    keys = [*_ROW_KEYS]
    for key in video_keys:
        keys += [f"videos/{key}/{name}" for name in (*_FILE_KEYS, *_CLIP_TIMES)]
    rows: list[tuple[Row, str | None]] = []
    for path in paths:
        file = require_small_file(place.local_root, str(path), allow_outside=place.allow_outside)
        table = ParquetTable(file)
        columns = [table.values_or_nan(key).tolist() for key in keys]
        values = [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
        tasks = table.objects("tasks") if "tasks" in table.columns else [None] * len(values)
        table.close()
        rows += zip(values, map(task_of, tasks), strict=True)
    return rows
