"""LeRobotDataset v3.0: many episodes per parquet file and video file, with an index in parquet.

The index contains per episode the numbers of its rows, and per camera the video file and the times
in it between which the episode is shown.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/utils.py, dataset_metadata.py (facts
only).
"""

from collections.abc import Sequence
from typing import Any, Final, Self

from pydantic import BaseModel, FiniteFloat, NonNegativeInt, model_validator

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.lerobot.episodes import Clip, EpisodeFiles, FindFile, IndexRow
from pipeline.datasets.lerobot.info import LeRobotInfo
from pipeline.datasets.lerobot.reader import LeRobotReader
from pipeline.datasets.lerobot.table import ParquetTable
from pipeline.datasets.manifest.paths import resolve_inside
from pipeline.errors import DatasetError

_DATA_PATH: Final = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO_PATH: Final = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


class _File(BaseModel):
    chunk_index: NonNegativeInt
    file_index: NonNegativeInt


class _Clip(_File):
    from_timestamp: FiniteFloat
    to_timestamp: FiniteFloat


class _Row(IndexRow):
    dataset_from_index: NonNegativeInt
    dataset_to_index: NonNegativeInt
    data: _File
    videos: dict[str, _Clip]

    @model_validator(mode="after")
    def _has_as_many_rows_as_steps(self) -> Self:
        if self.dataset_to_index != self.dataset_from_index + self.length:
            raise ValueError(
                f"expected dataset_to_index = dataset_from_index {self.dataset_from_index} + "
                f"length {self.length}, found {self.dataset_to_index}"
            )
        return self


class LeRobotV3Reader(LeRobotReader):
    """A LeRobot v3.0 dataset."""

    versions = ("v3.0",)
    index = "meta/episodes"
    shares_files = True

    @classmethod
    def read_index(cls, config: DatasetConfig, video_keys: Sequence[str]) -> list[dict[str, Any]]:
        root = config.local_root
        paths = sorted(  # macOS stores metadata next to files as `._file-000.parquet`
            path.relative_to(root)
            for path in (root / cls.index).glob("*/*.parquet")
            if not path.name.startswith(".")
        )
        if not paths:
            raise DatasetError(
                f"{root / cls.index}: expected the index of the episodes "
                "(chunk-000/file-000.parquet), found none; finalize the recording if it was "
                "not finished, or download it"
            )
        keys = [  # the statistics next to them are most of the index, and are not read
            *("episode_index", "length", "dataset_from_index", "dataset_to_index"),
            *(f"data/{name}" for name in _File.model_fields),
            *(f"videos/{key}/{name}" for key in video_keys for name in _Clip.model_fields),
        ]
        rows: list[dict[str, Any]] = []
        for path in paths:
            table = ParquetTable(
                resolve_inside(root, str(path), allow_outside=config.allow_outside)
            )
            rows += table.rows([*keys, *({"tasks"} & set(table.columns))])
            table.close()
        return rows

    @classmethod
    def locate(
        cls, row: dict[str, Any], info: LeRobotInfo, find: FindFile, video_keys: Sequence[str]
    ) -> EpisodeFiles:
        videos = {key: _below(f"videos/{key}", row, _Clip) for key in video_keys}
        at = _Row(**row, data=_below("data", row, _File), videos=videos)
        clips = {}
        for key, clip in at.videos.items():
            template, names = (
                info.video_path or _VIDEO_PATH,
                clip.model_dump(include=set(_File.model_fields)),
            )
            path = find(template, video_key=key, **names)
            clips[key] = Clip(path, clip.from_timestamp, clip.to_timestamp)
        number, table = at.episode_index, find(info.data_path or _DATA_PATH, **at.data.model_dump())
        name, first = f"{table}: episode {number}", at.dataset_from_index
        return EpisodeFiles(number, table, name, at.length, first, clips, at.task)


def _below(key: str, row: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    return {name: row[f"{key}/{name}"] for name in model.model_fields}
