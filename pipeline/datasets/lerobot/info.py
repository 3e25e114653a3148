"""`meta/info.json` of LeRobot datasets, v2.0 to v3.0: features, rates and path templates.

Source: huggingface/lerobot@7427f318:src/lerobot/datasets/utils.py (facts only).
"""

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.datasets.base import FormatSurvey
from pipeline.datasets.causes import why_unreadable
from pipeline.datasets.manifest.paths import read_file
from pipeline.errors import DatasetError
from policy.errors import invalid_field, one_line

INFO_PATH: Final = "meta/info.json"
BOOK_KEYS: Final = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Columns that number rows and steps; neither state nor action."""
_FORMATS: Final = {"v3.0": "lerobot_v3", "v2.1": "lerobot_v2", "v2.0": "lerobot_v2"}
_LICENSE: Final = re.compile(r"\A---\s*$.*?^license:[ \t]*([\w.-]+)[ \t]*$.*?^---\s*$", re.M | re.S)
_NUMBER_TYPES: Final = frozenset(
    [f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)] + ["bool"]
)


class Feature(BaseModel):
    """One key of the dataset: a camera, or numbers of every step."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    dtype: str
    """`video`, `image`, or a type of numbers."""
    shape: tuple[int, ...] = (1,)
    names: Any = None
    """Names of columns or axes: null, a list, or a dict of lists or of positions."""
    info: dict[str, Any] | None = None
    video_info: dict[str, Any] | None = None

    @property
    def kind(self) -> Literal["video", "image", "numbers", "other"]:
        """What the feature contains; only `dtype` decides."""
        if self.dtype in ("video", "image"):
            return "video" if self.dtype == "video" else "image"
        return "numbers" if self.dtype in _NUMBER_TYPES else "other"

    @property
    def is_depth(self) -> bool:
        """Whether the pixels are distances, not colors."""
        described = {**(self.video_info or {}), **(self.info or {})}
        return any(described.get(key) is True for key in ("is_depth_map", "video.is_depth_map"))

    @property
    def width(self) -> int:
        """Numbers per step."""
        return math.prod(self.shape)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Name of every number of a step; `0`, `1`, ... if not all have one."""
        names = self.names
        if isinstance(names, dict):
            values = list(names.values())
            is_position = bool(values) and all(type(value) is int for value in values)
            names = sorted(names, key=names.__getitem__) if is_position else values
        flat: list[str] = []
        for name in names if isinstance(names, list) else ():
            flat += map(str, name) if isinstance(name, list) else [str(name)]
        return tuple(flat) if len(flat) == self.width else tuple(map(str, range(self.width)))

    @property
    def frame_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels as stated here; the files may differ. None if unknown."""
        if len(self.shape) == 3 and self.shape[2] == 3:
            return self.shape[0], self.shape[1]
        return (self.shape[1], self.shape[2]) if len(self.shape) == 3 else None


class LeRobotInfo(BaseModel):
    """The fields of `meta/info.json` that are used."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    codebase_version: str
    fps: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    features: dict[str, Feature]
    total_episodes: int | None = None
    robot_type: Any = None
    chunks_size: Annotated[int, Field(ge=1)] = 1000
    data_path: str | None = None
    video_path: str | None = None
    splits: Any = None
    """Episodes `start:stop` by name of the split."""


def read_info(root: Path, versions: tuple[str, ...], *, allow_outside: bool = False) -> LeRobotInfo:
    """Read and check `meta/info.json` of a dataset of one of these `codebase_version`s.

    Raises:
        DatasetError: it is missing, not JSON, of another version or storage, lacks a key, or is
            stored outside.
    """
    path = root / INFO_PATH
    try:
        content = json.loads(read_file(root, INFO_PATH, allow_outside=allow_outside))
    except DatasetError:  # which is a ValueError
        raise
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{path}: expected the description of a LeRobot dataset, "
            + why_unreadable(path, error, "correct the path, or download the dataset again")
        ) from error
    version = content.get("codebase_version") if isinstance(content, dict) else None
    if version not in versions:
        fitting = _FORMATS.get(str(version))
        raise DatasetError(
            f"{path}: codebase_version: expected {' or '.join(versions)}, found {version}; "
            + (
                f'write format = "{fitting}" into the manifest'
                if fitting
                else "convert the dataset with LeRobot's own scripts"
            )
        )
    if not _is_parquet(content):
        raise DatasetError(
            f"{path}: storage_format: expected parquet and MP4 files, found "
            f"{content['storage_format']}, which is not supported; export the dataset to parquet "
            "with LeRobot"
        )
    try:
        return LeRobotInfo.model_validate(content)
    except ValidationError as error:
        raise DatasetError(
            f"{path}: {one_line(invalid_field(error))}; correct it or download the file again"
        ) from error


def has_version(root: Path, versions: tuple[str, ...]) -> bool:
    """Whether `root` is a LeRobot dataset of one of the versions, in parquet; never raises."""
    try:
        # Also behind a link to outside, so that opening the dataset names the link.
        content = json.loads(read_file(root, INFO_PATH, allow_outside=True))
    except (OSError, ValueError):
        return False
    is_known = isinstance(content, dict) and content.get("codebase_version") in versions
    return is_known and _is_parquet(content)


def survey_info(root: Path, info: LeRobotInfo) -> FormatSurvey:
    """List a dataset's color cameras and numbers, and its dataset card's license."""
    views, numbers = {}, {}
    for key, feature in info.features.items():
        if feature.kind in ("video", "image") and not feature.is_depth:
            views[key] = feature.frame_size
        elif feature.kind == "numbers" and key not in BOOK_KEYS:
            numbers[key] = feature.column_names
    notes = {}
    try:
        card = read_file(root, "README.md", allow_outside=False).decode(errors="replace")
    except (OSError, DatasetError):
        card = ""
    if found := _LICENSE.search(card):
        notes["license"] = found[1]
    return FormatSurvey(fps=info.fps, views=views, numbers=numbers, notes=notes)


def require_feature(root: Path, info: LeRobotInfo, key: str, kinds: tuple[str, ...]) -> Feature:
    """Return a feature of one of the kinds.

    Raises:
        DatasetError: there is no such key, or it contains something else; lists the keys that fit.
    """
    fitting = {k: f for k, f in info.features.items() if f.kind in kinds and not f.is_depth}
    if key in fitting:
        return fitting[key]
    found, feature = "no such key", info.features.get(key)
    if feature is not None:
        found = "a depth camera" if feature.is_depth else f"dtype {feature.dtype}"
    raise DatasetError(
        f"{root / INFO_PATH}: features: expected "
        f"{'numbers' if 'numbers' in kinds else 'a color camera'} at {key}, found {found}; use "
        f"one of {', '.join(sorted(fitting)[:20]) or 'none'}"
    )


def fill_template(template: str, values: dict[str, int | str], where: str) -> str:
    """Fill a path template such as `data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet`.

    Raises:
        DatasetError: the template contains another field; `where` names it.
    """
    try:
        return template.format(**values)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{where}: expected a path with fields {', '.join(sorted(values))}, found "
            f"{template!r}; correct it"
        ) from error


def read_split(root: Path, info: LeRobotInfo, name: str, num_episodes: int) -> tuple[int, ...]:
    """Return the episodes of a split, which info.json contains as `start:stop`.

    Raises:
        DatasetError: there is no such split, or it is not a range of the dataset's episodes.
    """
    splits = info.splits if isinstance(info.splits, dict) else {}
    bounds = re.fullmatch(r"(\d+):(\d+)", str(splits.get(name)).replace(" ", ""))
    if bounds is None or not int(bounds[1]) <= int(bounds[2]) <= num_episodes:
        raise DatasetError(
            f"{root / INFO_PATH}: splits: expected {name} as start:stop within 0..{num_episodes}, "
            f"found {splits or 'none'}; choose another split, or list episode numbers"
        )
    return tuple(range(int(bounds[1]), int(bounds[2])))


def _is_parquet(content: dict[str, Any]) -> bool:
    return str(content.get("storage_format") or "parquet").casefold() == "parquet"
