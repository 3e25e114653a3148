"""LeRobotDataset v2.0 and v2.1: one parquet file per episode, and one video per camera and episode.

The two versions differ only in their statistics, which are not read.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/utils.py and the scripts that convert
v2.1 to v3.0 (facts only).
"""

import json
import math
from typing import Any, Final

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.causes import why_unreadable
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
from pipeline.datasets.manifest.paths import read_file
from pipeline.errors import DatasetError

INDEX_PATH: Final = "meta/episodes.jsonl"
_DATA_PATH: Final = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_VIDEO_PATH: Final = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


class LeRobotV2Reader(LeRobotReader):
    """A LeRobot v2.0 or v2.1 dataset."""

    versions = ("v2.1", "v2.0")

    @staticmethod
    def locate(config: DatasetConfig, info: LeRobotInfo) -> LocatedEpisodes:
        """Read `meta/episodes.jsonl`, as `LeRobotReader.locate` describes."""
        path, find = config.local_root / INDEX_PATH, file_finder(config)
        wanted, _, num_episodes = split_rows(config, info, path, _read_index(config))
        found = []
        for row in wanted:
            number = integer(row, "episode_index", path)
            length = integer(row, "length", path, least=1)
            names = {"episode_index": number, "episode_chunk": number // info.chunks_size}
            template = info.video_path or _VIDEO_PATH
            clips = {
                key: Clip(find(template, video_key=key, **names), 0.0, math.inf)
                for key, kind in view_kinds(config, info).items()
                if kind == "video"
            }
            table = find(info.data_path or _DATA_PATH, **names)
            task = task_of(row.get("tasks"))
            found.append(EpisodeFiles(number, length, table, None, clips, task))
        return LocatedEpisodes(tuple(found), num_episodes)


def _read_index(config: DatasetConfig) -> list[dict[str, Any]]:
    path = config.local_root / INDEX_PATH
    try:
        content = read_file(config.local_root, INDEX_PATH, allow_outside=config.allow_outside)
        rows = [_parsed(line) for line in content.splitlines() if line.strip()]
    except OSError as error:
        raise DatasetError(
            f"{path}: expected the index of the episodes, "
            + why_unreadable(path, error, "download it again")
        ) from error
    if rows and not any(rows):
        raise DatasetError(
            f"{path}: expected a JSON object per line, found none in {len(rows)} lines; write each "
            "episode on its own line, or download it again"
        )
    return rows


def _parsed(line: bytes) -> dict[str, Any]:
    """Return a row; an empty one if the line is damaged, which may be an excluded episode's."""
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError):
        return {}
