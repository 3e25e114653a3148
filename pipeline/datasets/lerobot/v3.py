"""LeRobotDataset v3.0: many episodes per parquet file and video file, with an index in parquet.

The index contains per episode the numbers of its rows, and per camera the video file and the times
in it between which the episode is shown.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/utils.py, dataset_metadata.py (facts
only).
"""

import math
from contextlib import suppress
from typing import Any, Final

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.lerobot.episodes import (
    Clip,
    EpisodeFiles,
    LocatedEpisodes,
    file_finder,
    integer,
    split_rows,
    task_of,
    view_kinds,
)
from pipeline.datasets.lerobot.info import LeRobotInfo
from pipeline.datasets.lerobot.reader import LeRobotReader
from pipeline.datasets.lerobot.table import ParquetTable
from pipeline.datasets.manifest.paths import resolve_inside
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.errors import DatasetError

INDEX_FOLDER: Final = "meta/episodes"
_DATA_PATH: Final = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO_PATH: Final = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_ROW_KEYS: Final = (  # the statistics next to them are most of the index, and are not read
    *("episode_index", "length", "data/chunk_index", "data/file_index"),
    *("dataset_from_index", "dataset_to_index"),
)
_FILE_KEYS: Final = ("chunk_index", "file_index")
_CLIP_TIMES: Final = ("from_timestamp", "to_timestamp")


class LeRobotV3Reader(LeRobotReader):
    """A LeRobot v3.0 dataset."""

    versions = ("v3.0",)

    @staticmethod
    def locate(config: DatasetConfig, info: LeRobotInfo) -> LocatedEpisodes:
        """Read `meta/episodes`, as `LeRobotReader.locate` describes."""
        folder = config.local_root / INDEX_FOLDER
        video_keys = [key for key, kind in view_kinds(config, info).items() if kind == "video"]
        rows = _read_index(config, video_keys)
        find = file_finder(config)

        def located(row: dict[str, Any]) -> EpisodeFiles:
            number = integer(row, "episode_index", folder)
            length = integer(row, "length", folder, least=1)
            first = integer(row, "dataset_from_index", folder)
            if row["dataset_to_index"] != first + length:
                raise DatasetError(
                    f"{folder}: episode {number}: expected dataset_to_index = dataset_from_index "
                    f"{first} + length {length}, found {row['dataset_to_index']}; download `meta` "
                    f"again, or {LEAVE_OUT}"
                )
            clips = {}
            for key in video_keys:
                times = [row[f"videos/{key}/{name}"] for name in _CLIP_TIMES]
                if not all(isinstance(time, int | float) and math.isfinite(time) for time in times):
                    raise DatasetError(
                        f"{folder}: episode {number}: expected the begin and end of its clip of "
                        f"{key} in seconds, found {times}; download `meta` again, or {LEAVE_OUT}"
                    )
                names = {name: integer(row, f"videos/{key}/{name}", folder) for name in _FILE_KEYS}
                path = find(info.video_path or _VIDEO_PATH, video_key=key, **names)
                clips[key] = Clip(path, times[0], times[1])
            names = {name: integer(row, f"data/{name}", folder) for name in _FILE_KEYS}
            table = find(info.data_path or _DATA_PATH, **names)
            return EpisodeFiles(number, length, table, first, clips, task_of(row.get("tasks")))

        wanted, others, num_episodes = split_rows(config, info, folder, rows)
        excluded = []
        for row in others:
            with suppress(DatasetError):  # nothing can be checked against a damaged row
                excluded.append(located(row))
        return LocatedEpisodes(tuple(map(located, wanted)), num_episodes, tuple(excluded))


def _read_index(config: DatasetConfig, video_keys: list[str]) -> list[dict[str, Any]]:
    """Read the columns of `meta/episodes` that locate episodes, and the task, row by row."""
    root = config.local_root
    paths = sorted(  # macOS stores metadata next to files as `._file-000.parquet`
        path.relative_to(root)
        for path in (root / INDEX_FOLDER).glob("*/*.parquet")
        if not path.name.startswith(".")
    )
    if not paths:
        raise DatasetError(
            f"{root / INDEX_FOLDER}: expected the index of the episodes "
            "(chunk-000/file-000.parquet), found none; finalize the recording if it was "
            "not finished, or download it"
        )
    keys = [
        *_ROW_KEYS,
        *(f"videos/{key}/{name}" for key in video_keys for name in (*_FILE_KEYS, *_CLIP_TIMES)),
    ]
    rows: list[dict[str, Any]] = []
    for path in paths:
        table = ParquetTable(resolve_inside(root, str(path), allow_outside=config.allow_outside))
        rows += table.rows([*keys, *({"tasks"} & set(table.columns))])
        table.close()
    return rows
