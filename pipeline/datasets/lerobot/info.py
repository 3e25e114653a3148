"""`meta/info.json` of LeRobot datasets, v2.0 to v3.0: features, rates and where the files lie.

What it says is not trusted: unknown keys are ignored, known ones are checked, and its path
templates may only hold the published places.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/utils.py (facts only).
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.datasets.base import FormatSurvey
from pipeline.datasets.causes import one_line, why_unreadable
from pipeline.datasets.limits import MAX_COLUMNS
from pipeline.datasets.manifest.paths import read_small_file
from pipeline.errors import DatasetError

INFO_PATH: Final = "meta/info.json"
BOOK_KEYS: Final = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Columns that every dataset has to keep order; neither state nor action."""
_VERSIONS: Final = {"v3.0": "lerobot_v3", "v2.1": "lerobot_v2", "v2.0": "lerobot_v2"}
_FIELD: Final = re.compile(r"\{(\w*)(?::0?(\d{1,2})d)?\}")  # {name} or {name:03d}
_LICENSE: Final = re.compile(r"\A---\s*$.*?^license:[ \t]*([\w.-]+)[ \t]*$.*?^---\s*$", re.M | re.S)
_NUMBER_TYPES: Final = frozenset(
    [f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)] + ["bool"]
)
_README_BYTES: Final = 20_000  # the front matter of a dataset card is at its top
_NAME_DEPTH: Final = 4  # of lists in lists of names

_Size = Annotated[int, Field(ge=1)]


class Feature(BaseModel):
    """One key of the dataset: a camera, or numbers of every step."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    dtype: str
    """`video`, `image`, or a type of numbers; only this tells what is a camera."""
    shape: tuple[_Size, ...] = (1,)
    names: Any = None
    """Names of columns or axes: null, a list, lists in a list, or a dict of them."""
    info: dict[str, Any] | None = None
    video_info: dict[str, Any] | None = None

    @property
    def kind(self) -> Literal["video", "image", "numbers", "other"]:
        """What the feature holds, by its dtype."""
        if self.dtype in ("video", "image"):
            return "video" if self.dtype == "video" else "image"
        return "numbers" if self.dtype in _NUMBER_TYPES else "other"

    @property
    def is_depth(self) -> bool:
        """Whether the pictures are distances and not colors."""
        described = {**(self.video_info or {}), **(self.info or {})}
        return any(described.get(key) is True for key in ("is_depth_map", "video.is_depth_map"))

    @property
    def width(self) -> int:
        """Numbers a step."""
        return math.prod(self.shape)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Name of every number of a step; `0`, `1`, ... where the files name none or not all."""
        names = tuple(_flat_names(self.names))
        return names if len(names) == self.width else tuple(map(str, range(self.width)))

    @property
    def frame_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels, a hint that files get wrong; None where nothing tells."""
        described = {**(self.video_info or {}), **(self.info or {})}
        stated = [described.get(f"video.{axis}") for axis in ("height", "width")]
        if all(type(pixels) is int for pixels in stated):
            return stated[0], stated[1]  # type: ignore[return-value] # both are int
        if len(self.shape) != 3:
            return None
        axes = [str(name).rstrip("s") for name in _flat_names(self.names)]
        if sorted(axes) == ["channel", "height", "width"]:
            channels, height, width = (self.shape[axes.index(name)] for name in sorted(axes))
            if channels == 3:  # otherwise the names are those of another order
                return height, width
        if self.shape[2] == 3:
            return self.shape[0], self.shape[1]
        return (self.shape[1], self.shape[2]) if self.shape[0] == 3 else None


class LeRobotInfo(BaseModel):
    """What is used of `meta/info.json`; what nobody asks for may be as odd as it likes."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    codebase_version: str
    fps: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    features: dict[str, Feature]
    """Those that can be understood."""
    odd_features: dict[str, str] = Field(default_factory=dict)
    """What is wrong with the others."""
    total_episodes: int | None = None
    robot_type: Any = None
    chunks_size: _Size = 1000
    data_path: str | None = None
    video_path: str | None = None
    splits: Any = None
    """Episodes `start:stop` by name of the split, in files that have splits."""
    storage_format: str | None = None


def read_info(root: Path, versions: tuple[str, ...], *, allow_outside: bool = False) -> LeRobotInfo:
    """Read and check `meta/info.json`.

    Args:
        root: the dataset.
        versions: `codebase_version`s that the caller reads.
        allow_outside: whether the file may lie outside `root`.

    Raises:
        DatasetError: it is absent, not JSON, of another version or storage, lacks a key, or lies
            outside.
    """
    path = root / INFO_PATH
    try:
        content = json.loads(read_small_file(root, INFO_PATH, allow_outside=allow_outside))
    except DatasetError:  # which is a ValueError
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(
            f"{path}: expected the description of a LeRobot dataset, "
            + why_unreadable(path, error, "correct the path, or download the dataset again")
        ) from error
    version = content.get("codebase_version") if isinstance(content, dict) else None
    if version not in versions:
        fitting = _VERSIONS.get(str(version))
        advice = (
            f'write format = "{fitting}" into the manifest'
            if fitting
            else "convert the dataset with LeRobot's own scripts"
        )
        raise DatasetError(
            f"{path}: codebase_version: expected {' or '.join(versions)}, found "
            f"{str(version)[:20]}; {advice}"
        )
    storage = content.get("storage_format")
    if storage is not None and str(storage).casefold() != "parquet":
        raise DatasetError(
            f"{path}: storage_format: expected parquet and MP4 files, found {str(storage)[:20]}, "
            "which is not read; export the dataset to parquet with LeRobot"
        )
    known, odd = _features(content.get("features"))
    try:
        return LeRobotInfo.model_validate({**content, "features": known, "odd_features": odd})
    except ValidationError as error:
        raise DatasetError(f"{path}: {_refusal(error)}") from error


def has_version(root: Path, versions: tuple[str, ...]) -> bool:
    """Whether `root` is a LeRobot dataset of one of the versions, kept in parquet; never raises."""
    try:
        # Behind a link too, so that opening the dataset names the link; nothing of it is shown.
        content = json.loads(read_small_file(root, INFO_PATH, allow_outside=True))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(content, dict) or content.get("codebase_version") not in versions:
        return False
    return str(content.get("storage_format") or "parquet").casefold() == "parquet"


def survey_info(root: Path, info: LeRobotInfo) -> FormatSurvey:
    """Say what a dataset offers: its color cameras, its numbers, and its card's license."""
    views, numbers = {}, {}
    for key, feature in info.features.items():
        if feature.kind in ("video", "image") and not feature.is_depth:
            views[key] = feature.frame_size
        elif feature.kind == "numbers" and key not in BOOK_KEYS and feature.width <= MAX_COLUMNS:
            numbers[key] = feature.column_names
    notes = {}
    try:
        readme = read_small_file(root, "README.md", allow_outside=False)
        card = readme[:_README_BYTES].decode(errors="replace")
    except (OSError, DatasetError):
        card = ""
    if found := _LICENSE.search(card):
        notes["license"] = found[1]
    return FormatSurvey(fps=info.fps, views=views, numbers=numbers, notes=notes)


def require_feature(root: Path, info: LeRobotInfo, key: str, kinds: tuple[str, ...]) -> Feature:
    """Return a feature of one of the kinds.

    Raises:
        DatasetError: there is no such key, or it holds something else; lists those that fit.
    """
    if key in info.odd_features:
        raise DatasetError(f"{root / INFO_PATH}: features.{key}.{info.odd_features[key]}")
    feature = info.features.get(key)
    if feature is not None and feature.kind == "numbers" and feature.width > MAX_COLUMNS:
        raise DatasetError(
            f"{root / INFO_PATH}: features.{key}.shape: expected at most {MAX_COLUMNS} numbers a "
            f"step, found {str(feature.shape)[:40]}; name another key, or correct it"
        )
    if feature is not None and feature.kind in kinds and not feature.is_depth:
        return feature
    fitting = [k for k, f in info.features.items() if f.kind in kinds and not f.is_depth]
    wanted = "numbers" if "numbers" in kinds else "a color camera"
    found = "no such key"
    if feature is not None:
        found = "a depth camera" if feature.is_depth else f"dtype {feature.dtype[:20]}"
    raise DatasetError(
        f"{root / INFO_PATH}: features: expected {wanted} at {key}, found {found}; name one of "
        f"{', '.join(sorted(fitting)[:20]) or 'none'}"
    )


def fill_template(template: str, values: Mapping[str, int | str], where: str) -> str:
    """Fill a path template; unlike `str.format` it reaches no attributes and pads only a little.

    Args:
        template: as `data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet`.
        values: what may stand between braces.
        where: names the template in messages.

    Raises:
        DatasetError: something else stands between braces.
    """

    def fill(match: re.Match[str]) -> str:
        value, digits = values[match[1]], match[2]
        return f"{value:0{digits}d}" if digits and isinstance(value, int) else str(value)

    names = {match[1] for match in _FIELD.finditer(template)}
    rest = _FIELD.sub("", template)
    if not names <= values.keys() or "{" in rest or "}" in rest:
        raise DatasetError(
            f"{where}: expected a path with places {', '.join(sorted(values))}, found "
            f"{template[:200]!r}; correct it"
        )
    return _FIELD.sub(fill, template)


def read_split(root: Path, info: LeRobotInfo, name: str, num_episodes: int) -> tuple[int, ...]:
    """Return the episodes of a split, which info.json keeps as `start:stop`.

    Raises:
        DatasetError: there is no such split, or it is no range of the episodes that are there.
    """
    where = f"{root / INFO_PATH}: splits"
    splits = info.splits if isinstance(info.splits, dict) else {}
    if name not in splits:
        raise DatasetError(
            f"{where}: expected a split {name}, found {', '.join(splits)[:200] or 'none'}; name "
            "one of those, or list the episodes by number"
        )
    bounds = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", str(splits[name]).replace(" ", ""))
    if bounds is None or not int(bounds[1]) <= int(bounds[2]) <= num_episodes:
        raise DatasetError(
            f"{where}.{name}: expected start:stop within 0..{num_episodes}, found "
            f"{str(splits[name])[:40]!r}; list the episodes by number"
        )
    return tuple(range(int(bounds[1]), int(bounds[2])))


def _features(content: object) -> tuple[object, dict[str, str]]:
    """Take the features that can be understood, and say what is wrong with the others."""
    if not isinstance(content, dict):
        return content, {}
    known, odd = {}, {}
    for key, value in content.items():
        try:
            known[key] = Feature.model_validate(value)
        except ValidationError as error:
            odd[key] = _refusal(error)
    return known, odd


def _refusal(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return (
        f"{place}: expected what LeRobot writes, found a value that is refused: "
        f"{one_line(first['msg'])}; correct it or download the file again"
    )


def _flat_names(names: Any, depth: int = 0) -> list[str]:
    if depth > _NAME_DEPTH:
        return []
    if isinstance(names, Mapping):
        if names and all(type(value) is int for value in names.values()):
            return sorted(map(str, names), key=lambda name: int(names[name]))
        names = list(names.values())
    if isinstance(names, list):
        return [name for part in names for name in _flat_names(part, depth + 1)]
    return [] if names is None else [str(names)]
