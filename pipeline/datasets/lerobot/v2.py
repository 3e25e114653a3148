"""LeRobotDataset v2.0 and v2.1: one parquet file an episode, and one video a camera and episode.

The two versions differ in their statistics only, which are not read. Knows this layout and no
manifest.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/utils.py and the scripts that convert
v2.1 to v3.0 (facts only).
"""

from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
from pipeline.datasets.manifest.paths import read_small_file
from pipeline.datasets.manifest.selection import wanted_numbers
from pipeline.errors import DatasetError

VERSIONS: Final = ("v2.1", "v2.0")
INDEX_PATH: Final = "meta/episodes.jsonl"
_DATA_PATH: Final = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_VIDEO_PATH: Final = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


class LeRobotV2Reader(LeRobotReader):
    """A LeRobot v2.0 or v2.1 dataset; implements `FormatReader`."""

    def __init__(self, place: DatasetPlace) -> None:
        """Read the index and check every wanted file by its header; no frame is decoded.

        Raises:
            DatasetError: another version, an index with gaps, a key that is no such feature, no
                episode that is wanted, or a file that is missing, damaged, too short, of more
                frames than rows, or outside the root.
        """
        info = read_info(place.local_root, VERSIONS, allow_outside=place.allow_outside)
        super().__init__(place, info, _locate(place, info))

    @staticmethod
    def recognises(root: Path) -> bool:
        """Tell by `meta/info.json` whether this is a LeRobot v2.0 or v2.1 dataset."""
        return has_version(root, VERSIONS)

    @staticmethod
    def survey(root: Path) -> FormatSurvey:
        """List the features of `meta/info.json`.

        Raises:
            DatasetError: it does not read.
        """
        return survey_info(root, read_info(root, VERSIONS))


class _IndexLine(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    episode_index: Annotated[int, Field(ge=0)]
    length: Annotated[int, Field(ge=1)]


def _locate(place: DatasetPlace, info: LeRobotInfo) -> LocatedEpisodes:
    """Say of every wanted episode, ordered by number, where its rows and clips lie."""
    kinds = view_kinds(place, info)
    video_keys = [key for key, kind in kinds.items() if kind == "video"]
    files, where = FileFinder(place), f"{place.local_root / INFO_PATH}"
    path = place.local_root / INDEX_PATH
    lines = sorted(_read_index(place), key=lambda line: line.episode_index)
    require_all_numbers(path, [line.episode_index for line in lines], info)
    wanted = wanted_numbers(place, [line.episode_index for line in lines])
    data_path, video_path = info.data_path or _DATA_PATH, info.video_path or _VIDEO_PATH
    found = []
    for line in (line for line in lines if line.episode_index in wanted):
        number = line.episode_index
        names: dict[str, int | str] = {
            "episode_index": number,
            "episode_chunk": number // info.chunks_size,
        }
        table = files.find(fill_template(data_path, names, f"{where}: data_path"))
        clips = {}
        for key in video_keys:
            filled = fill_template(video_path, {**names, "video_key": key}, f"{where}: video_path")
            clips[key] = Clip(path=files.find(filled), start_s=0.0)
        found.append(EpisodeFiles(number, line.length, table, None, clips))
    rows_of = {files.table: files.length for files in found}
    return LocatedEpisodes(tuple(found), len(lines), rows_of)


def _read_index(place: DatasetPlace) -> list[_IndexLine]:
    path = place.local_root / INDEX_PATH
    try:
        content = read_small_file(place.local_root, INDEX_PATH, allow_outside=place.allow_outside)
        texts = content.splitlines()
    except OSError as error:
        raise DatasetError(
            f"{path}: expected the index of the episodes, found none that reads; download it"
        ) from error
    lines = []
    for row, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            lines.append(_IndexLine.model_validate_json(text))
        except ValidationError as error:
            raise DatasetError(
                f"{path}: line {row}: expected episode_index and length as whole numbers, found "
                f"{text[:80]!r}; download the file again"
            ) from error
    return lines
