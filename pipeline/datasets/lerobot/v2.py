"""LeRobotDataset v2.0 and v2.1: one parquet file an episode, and one video a camera and episode.

The two versions differ in their statistics only, which are not read.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/utils.py and the scripts that convert
v2.1 to v3.0 (facts only).
"""

import math
from operator import attrgetter
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.datasets.base import DatasetPlace
from pipeline.datasets.causes import why_unreadable
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
from pipeline.datasets.manifest.paths import read_small_file
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.errors import DatasetError

VERSIONS: Final = ("v2.1", "v2.0")
INDEX_PATH: Final = "meta/episodes.jsonl"
_DATA_PATH: Final = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_VIDEO_PATH: Final = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


class LeRobotV2Reader(LeRobotReader):
    """A LeRobot v2.0 or v2.1 dataset; implements `FormatReader`."""

    versions = VERSIONS

    def __init__(self, place: DatasetPlace) -> None:
        """Read the index and check every wanted file by its header; no frame is decoded.

        Raises:
            DatasetError: another version, an index that lacks a wanted episode, a key that is no
                such feature, no wanted episode, or a file that is missing, damaged, too short,
                of more frames than rows, or outside the root.
        """
        info = read_info(place.local_root, VERSIONS, allow_outside=place.allow_outside)
        super().__init__(place, info, _locate(place, info))


class _IndexLine(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    episode_index: Annotated[int, Field(ge=0)]
    length: Any = None
    """Number of steps; looked at where the episode is wanted."""
    tasks: Any = None


def _locate(place: DatasetPlace, info: LeRobotInfo) -> LocatedEpisodes:
    """Say of every wanted episode, ordered by number, where its rows and clips lie."""
    kinds = view_kinds(place, info)
    video_keys = [key for key, kind in kinds.items() if kind == "video"]
    files, where = FileFinder(place), f"{place.local_root / INFO_PATH}"
    path = place.local_root / INDEX_PATH
    lines = _read_index(place)
    numbers = [None if line is None else line.episode_index for line in lines]
    wanted = choose_numbers(place, info, path, numbers)
    data_path, video_path = info.data_path or _DATA_PATH, info.video_path or _VIDEO_PATH
    found = []
    for line in filter(None, lines):
        if line.episode_index not in wanted:
            continue
        number, length = line.episode_index, line.length
        if type(length) is not int or length < 1:
            raise DatasetError(
                f"{path}: episode {number}: length: expected at least 1 step, found {length}; "
                f"download `meta` again, or {LEAVE_OUT}"
            )
        names: dict[str, int | str] = {
            "episode_index": number,
            "episode_chunk": number // info.chunks_size,
        }
        table = files.find(fill_template(data_path, names, f"{where}: data_path"))
        clips = {}
        for key in video_keys:
            filled = fill_template(video_path, {**names, "video_key": key}, f"{where}: video_path")
            clips[key] = Clip(files.find(filled), start_s=0.0, end_s=math.inf)
        found.append(EpisodeFiles(number, length, table, None, clips, task_of(line.tasks)))
    found.sort(key=attrgetter("number"))
    return LocatedEpisodes(tuple(found), max(filter(None, numbers), default=0) + 1)


def _read_index(place: DatasetPlace) -> list[_IndexLine | None]:
    """Read the lines of the index; None for one that does not read."""
    path = place.local_root / INDEX_PATH
    try:
        content = read_small_file(place.local_root, INDEX_PATH, allow_outside=place.allow_outside)
        texts = content.splitlines()
    except OSError as error:
        raise DatasetError(
            f"{path}: expected the index of the episodes, "
            + why_unreadable(path, error, "download it again")
        ) from error
    lines: list[_IndexLine | None] = []
    for text in filter(None, map(bytes.strip, texts)):
        try:
            lines.append(_IndexLine.model_validate_json(text))
        except ValidationError:
            lines.append(None)
    return lines
