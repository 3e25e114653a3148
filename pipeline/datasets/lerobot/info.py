"""`meta/info.json` of LeRobot datasets, v2.0 to v3.0: features, rates and path templates.

Source: huggingface/lerobot@7427f318:src/lerobot/datasets/utils.py (facts only).
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.datasets.causes import why_unreadable
from pipeline.datasets.manifest.paths import read_file
from pipeline.errors import DatasetError
from policy.errors import invalid_field, one_line

INFO_PATH: Final = "meta/info.json"
_NUMBER_TYPES: Final = frozenset(
    [f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)] + ["bool"]
)
_DEPTH_KEYS: Final = ("is_depth_map", "video.is_depth_map")


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
    def kind(self) -> str:
        """`video` or `image` of color, `depth`, `numbers` or `other`."""
        if self.dtype not in ("video", "image"):
            return "numbers" if self.dtype in _NUMBER_TYPES else "other"
        described = {**(self.video_info or {}), **(self.info or {})}
        is_depth = any(described.get(key) is True for key in _DEPTH_KEYS)
        return "depth" if is_depth else self.dtype

    @property
    def width(self) -> int:
        """Numbers per step."""
        return math.prod(self.shape)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Name of every number of a step; `0`, `1`, ... if not all have one."""
        names = self.names
        if isinstance(names, dict):
            has_positions = all(isinstance(value, int) for value in names.values())
            names = sorted(names, key=names.__getitem__) if has_positions else list(names.values())
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

    storage_format: Literal["parquet"] | None = None
    fps: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    features: dict[str, Feature]
    total_episodes: int | None = None
    chunks_size: Annotated[int, Field(ge=1)] = 1000
    data_path: str | None = None
    video_path: str | None = None
    splits: Any = None
    """Episodes `start:stop` by name of the split."""


def read_info(root: Path, versions: tuple[str, ...], *, allow_outside: bool = False) -> LeRobotInfo:
    """Read and check `meta/info.json` of a dataset of one of these `codebase_version`s.

    DatasetError: it is missing, damaged, of another version or storage, or is stored outside.
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
        raise DatasetError(
            f"{path}: codebase_version: expected {' or '.join(versions)}, found {version}; correct "
            "`format` in the manifest, or convert the dataset with LeRobot's own scripts"
        )
    try:
        return LeRobotInfo.model_validate(content)
    except ValidationError as error:
        raise DatasetError(
            f"{path}: {one_line(invalid_field(error))}; correct it or download the file again"
        ) from error


def stated_version(root: Path) -> str | None:
    """Return the `codebase_version` of a dataset; None if it is no LeRobot dataset."""
    try:
        # Also behind a link to outside, so that opening the dataset names the link.
        content = json.loads(read_file(root, INFO_PATH, allow_outside=True))
        return str(content["codebase_version"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def require_feature(root: Path, info: LeRobotInfo, key: str, kinds: tuple[str, ...]) -> Feature:
    """Return a feature of one of the kinds (DatasetError, with the keys that fit: it is none)."""
    fitting = {k: f for k, f in info.features.items() if f.kind in kinds}
    if key in fitting:
        return fitting[key]
    feature = info.features.get(key)
    found = f"dtype {feature.dtype} ({feature.kind})" if feature else "no such key"
    raise DatasetError(
        f"{root / INFO_PATH}: features: expected {' or '.join(kinds)} at {key}, found {found}; "
        f"use one of {', '.join(sorted(fitting)[:20]) or 'none'}"
    )
