"""LeRobotDataset v3.0: many episodes a parquet file and a video file, with an index in parquet.

The index says for every episode which rows are its own, and for every camera which file and from
which second on; all of that differs from camera to camera. Knows this layout and no manifest.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/utils.py, dataset_metadata.py (facts
only).
"""

from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.datasets.base import DatasetPlace, FormatSurvey
from pipeline.datasets.lerobot_episodes import (
    Clip,
    EpisodeFiles,
    FileFinder,
    require_all_numbers,
    view_kinds,
)
from pipeline.datasets.lerobot_info import (
    INFO_PATH,
    LeRobotInfo,
    fill_template,
    has_version,
    read_info,
    survey_info,
)
from pipeline.datasets.lerobot_reader import LeRobotReader
from pipeline.datasets.lerobot_table import ParquetTable
from pipeline.errors import DatasetError

VERSIONS: Final = ("v3.0",)
INDEX_FOLDER: Final = "meta/episodes"
_DATA_PATH: Final = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO_PATH: Final = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_ROW_KEYS: Final = (  # the statistics beside them are most of the index, and are not read
    *("episode_index", "length", "data/chunk_index", "data/file_index"),
    *("dataset_from_index", "dataset_to_index"),
)


class LeRobotV3Reader(LeRobotReader):
    """A LeRobot v3.0 dataset; implements `FormatReader`."""

    def __init__(self, place: DatasetPlace) -> None:
        """Read the index and check every file by its header; no frame is decoded.

        Raises:
            DatasetError: another version, an index with gaps, a key that is no such feature, or
                a file that is missing, damaged, too short, or outside the root.
        """
        info = read_info(place.root, VERSIONS)
        super().__init__(place, info, _locate(place, info))

    @staticmethod
    def recognises(root: Path) -> bool:
        """Tell by `meta/info.json` whether this is a LeRobot v3.0 dataset in parquet."""
        return has_version(root, VERSIONS)

    @staticmethod
    def survey(root: Path) -> FormatSurvey:
        """List the features of `meta/info.json`.

        Raises:
            DatasetError: it does not read.
        """
        return survey_info(root, read_info(root, VERSIONS))


def _locate(place: DatasetPlace, info: LeRobotInfo) -> list[EpisodeFiles]:
    """Say of every episode, ordered by number, where its rows and clips lie."""
    kinds = view_kinds(place, info)
    video_keys = [key for key, kind in kinds.items() if kind == "video"]
    index = _read_index(place, video_keys)
    order = np.argsort(index["episode_index"], kind="stable")
    folder = place.root / INDEX_FOLDER
    require_all_numbers(folder, index["episode_index"][order].tolist(), info)
    files, where = FileFinder(place), f"{place.root / INFO_PATH}"
    data_path, video_path = info.data_path or _DATA_PATH, info.video_path or _VIDEO_PATH
    found = []
    for number, row in enumerate(order):
        values = {key: column[row].item() for key, column in index.items()}
        length, first = values["length"], values["dataset_from_index"]
        if length < 1 or values["dataset_to_index"] - first != length:
            raise DatasetError(
                f"{folder}: episode {number}: expected dataset_to_index {first} + length {length}, "
                f"found {values['dataset_to_index']}; the index is damaged, download it again"
            )
        numbers = {name: values[f"data/{name}"] for name in ("chunk_index", "file_index")}
        table = files.find(fill_template(data_path, numbers, f"{where}: data_path"))
        clips = {}
        for key in video_keys:
            prefix = f"videos/{key}/"
            start_s = values[f"{prefix}from_timestamp"]
            if not np.isfinite(start_s):
                raise DatasetError(
                    f"{folder}: episode {number}: {prefix}from_timestamp: expected seconds, found "
                    f"{start_s}; the index is damaged, download it again"
                )
            names = {
                "video_key": key,
                **{name: values[prefix + name] for name in ("chunk_index", "file_index")},
            }
            path = files.find(fill_template(video_path, names, f"{where}: video_path"))
            clips[key] = Clip(path=path, start_s=start_s)
        found.append(EpisodeFiles(number, length, table, first, clips))
    return found


def _read_index(place: DatasetPlace, video_keys: list[str]) -> dict[str, Any]:
    """Read the columns of `meta/episodes` that say where things lie, one array each."""
    finder = FileFinder(place)
    folder = place.root / INDEX_FOLDER
    paths = sorted(path.relative_to(place.root) for path in folder.glob("*/*.parquet"))
    if not paths:
        raise DatasetError(
            f"{folder}: expected the index of the episodes (chunk-000/file-000.parquet), found "
            "none; download it"
        )
    parts = []
    for path in paths:
        table = ParquetTable(finder.find(str(path)))
        part: dict[str, Any] = {key: table.integers(key) for key in _ROW_KEYS}
        for key in video_keys:
            for name in ("chunk_index", "file_index"):
                part[f"videos/{key}/{name}"] = table.integers(f"videos/{key}/{name}")
            column = f"videos/{key}/from_timestamp"
            part[column] = table.numbers(column)[:, 0].astype(np.float64)
        table.close()
        parts.append(part)
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
