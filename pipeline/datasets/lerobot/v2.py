"""LeRobotDataset v2.0 and v2.1: one parquet file per episode, and one video per camera and episode.

The two versions differ only in their statistics, which are not read.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/utils.py and the scripts that convert
v2.1 to v3.0 (facts only).
"""

import json
import math
from collections.abc import Sequence
from typing import Any, Final

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.causes import why_unreadable
from pipeline.datasets.lerobot.episodes import Clip, EpisodeFiles, FindFile, IndexRow
from pipeline.datasets.lerobot.info import LeRobotInfo
from pipeline.datasets.lerobot.reader import LeRobotReader
from pipeline.datasets.manifest.paths import read_file
from pipeline.errors import DatasetError

_DATA_PATH: Final = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_VIDEO_PATH: Final = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


class LeRobotV2Reader(LeRobotReader):
    """A LeRobot v2.0 or v2.1 dataset."""

    versions = ("v2.1", "v2.0")
    index = "meta/episodes.jsonl"

    @classmethod
    def read_index(cls, config: DatasetConfig, video_keys: Sequence[str]) -> list[dict[str, Any]]:
        path = config.local_root / cls.index
        try:
            content = read_file(config.local_root, cls.index, allow_outside=config.allow_outside)
        except OSError as error:
            raise DatasetError(
                f"{path}: expected the index of the episodes, "
                + why_unreadable(path, error, "download it again")
            ) from error
        return [_parsed(line) for line in content.splitlines() if line.strip()]

    @classmethod
    def locate(
        cls, row: dict[str, Any], info: LeRobotInfo, find: FindFile, video_keys: Sequence[str]
    ) -> EpisodeFiles:
        at = IndexRow.model_validate(row)
        number = at.episode_index
        names = {"episode_index": number, "episode_chunk": number // info.chunks_size}
        template = info.video_path or _VIDEO_PATH
        clips = {
            key: Clip(find(template, video_key=key, **names), 0.0, math.inf) for key in video_keys
        }
        table = find(info.data_path or _DATA_PATH, **names)
        name = f"{table}: episode {number}"
        return EpisodeFiles(number, table, name, at.length, None, clips, at.task)


def _parsed(line: bytes) -> dict[str, Any]:
    """Return a row; an empty one if the line is damaged, which may be an excluded episode's."""
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError):
        return {}
