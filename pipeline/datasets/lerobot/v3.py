"""LeRobotDataset v3.0: many episodes a parquet file and a video file, with an index in parquet.

The index says for every episode which rows are its own, and for every camera which file and from
which second on; all of that differs from camera to camera. Knows this layout and no manifest.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/utils.py, dataset_metadata.py (facts
only).
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from pipeline.datasets.base import DatasetPlace, FormatSurvey
from pipeline.datasets.lerobot.episodes import (
    Clip,
    EpisodeFiles,
    FileFinder,
    LocatedEpisodes,
    require_all_numbers,
    view_kinds,
)
from pipeline.datasets.lerobot.info import (
    INFO_PATH,
    LeRobotInfo,
    fill_template,
    has_version,
    read_info,
    survey_info,
)
from pipeline.datasets.lerobot.reader import LeRobotReader
from pipeline.datasets.lerobot.table import ParquetTable
from pipeline.datasets.limits import MAX_NUMBERS
from pipeline.datasets.manifest.paths import require_small_file
from pipeline.datasets.manifest.selection import LEAVE_OUT, wanted_numbers
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
        """Read the index and check every wanted file by its header; no frame is decoded.

        Raises:
            DatasetError: another version, an index with gaps, a key that is no such feature, no
                episode that is wanted, or a file that is missing, damaged, too short, or outside
                the root.
        """
        info = read_info(place.local_root, VERSIONS, allow_outside=place.allow_outside)
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


def _locate(place: DatasetPlace, info: LeRobotInfo) -> LocatedEpisodes:
    """Say of every wanted episode, ordered by number, where its rows and clips lie."""
    kinds = view_kinds(place, info)
    video_keys = [key for key, kind in kinds.items() if kind == "video"]
    index = _read_index(place, video_keys)
    order = np.argsort(index["episode_index"], kind="stable")
    folder = place.local_root / INDEX_FOLDER
    require_all_numbers(folder, index["episode_index"][order].tolist(), info)
    wanted = wanted_numbers(place, range(len(order)))
    files, where = FileFinder(place), f"{place.local_root / INFO_PATH}"
    video_path = info.video_path or _VIDEO_PATH
    found = []
    for number in sorted(wanted):
        values = {key: column[order[number]].item() for key, column in index.items()}
        length, first = values["length"], values["dataset_from_index"]
        if length < 1 or values["dataset_to_index"] - first != length:
            raise DatasetError(
                f"{folder}: episode {number}: expected dataset_to_index {first} + length {length}, "
                f"found {values['dataset_to_index']}; the index is damaged, download it again, or "
                f"{LEAVE_OUT}"
            )
        clips = {}
        for key in video_keys:
            prefix = f"videos/{key}/"
            start_s = values[f"{prefix}from_timestamp"]
            if not np.isfinite(start_s):
                raise DatasetError(
                    f"{folder}: episode {number}: {prefix}from_timestamp: expected seconds, found "
                    f"{start_s}; the index is damaged, download it again, or {LEAVE_OUT}"
                )
            names = {
                "video_key": key,
                **{name: values[prefix + name] for name in ("chunk_index", "file_index")},
            }
            path = files.find(fill_template(video_path, names, f"{where}: video_path"))
            clips[key] = Clip(path=path, start_s=start_s)
        table = _table(info, index, int(order[number]), files, where)
        found.append(EpisodeFiles(number, length, table, first, clips))
    return LocatedEpisodes(tuple(found), len(order), _rows_of(found, index, order))


def _table(
    info: LeRobotInfo, index: dict[str, Any], row: int, files: FileFinder, where: str
) -> Path:
    numbers = {name: index[f"data/{name}"][row].item() for name in ("chunk_index", "file_index")}
    return files.find(fill_template(info.data_path or _DATA_PATH, numbers, f"{where}: data_path"))


def _rows_of(
    found: list[EpisodeFiles], index: dict[str, Any], order: Int64[np.ndarray, " e"]
) -> dict[Path, int]:
    """Count the rows of each table that the index lists, those of unwanted episodes too."""
    places = np.stack([index["data/chunk_index"], index["data/file_index"]], axis=1)
    _, table_of = np.unique(places, axis=0, return_inverse=True)
    lengths = np.clip(index["length"], 0, MAX_NUMBERS).astype(np.float64)
    totals = np.bincount(table_of.ravel(), weights=lengths)
    return {files.table: int(totals[table_of.ravel()[order[files.number]]]) for files in found}


def _read_index(place: DatasetPlace, video_keys: list[str]) -> dict[str, Any]:
    """Read the columns of `meta/episodes` that say where things lie, one array each."""
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
    parts = []
    for path in paths:
        file = require_small_file(place.local_root, str(path), allow_outside=place.allow_outside)
        table = ParquetTable(file)
        part: dict[str, Any] = {key: table.integers(key) for key in _ROW_KEYS}
        for key in video_keys:
            for name in ("chunk_index", "file_index"):
                part[f"videos/{key}/{name}"] = table.integers(f"videos/{key}/{name}")
            column = f"videos/{key}/from_timestamp"
            part[column] = table.numbers(column)[:, 0].astype(np.float64)
        table.close()
        parts.append(part)
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
