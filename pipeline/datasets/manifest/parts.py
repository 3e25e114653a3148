"""The tables of a manifest: views, number arrays, sources, episode filters and splits.

`data_manifests/README.md` explains every field in words.
"""

from collections import Counter
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    field_serializer,
    model_validator,
)

from pipeline.datasets.registry import FormatName
from policy.spec import FrozenModel

ColorOrder = Literal["rgb", "bgr"]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_SHA256: Final = r"^[0-9a-f]{64}$"


def _require_names(key: str) -> str:
    """Refuse a key that a reader would report as a damaged file."""
    if any(part in ("", ".", "..") for part in key_path(key).split("/")):
        raise ValueError(
            "expected names joined by single slashes, such as observations/images/front, found "
            f"{key!r}; correct this key"
        )
    return key


def key_path(key: str) -> str:
    """Return a key without a leading slash."""
    return key.removeprefix("/")


def _one_or_several(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple) and value:
        return value
    raise ValueError(f"expected a key or a list of keys, found {value!r}; correct it")


def _require_unique(numbers: tuple[int, ...]) -> tuple[int, ...]:
    repeated = sorted(number for number, count in Counter(numbers).items() if count > 1)
    if repeated:
        raise ValueError(
            f"expected each number once, found {repeated} repeated; remove the duplicates"
        )
    return numbers


Key = Annotated[Text, AfterValidator(_require_names)]
Count = Annotated[int, Field(ge=0, strict=True)]
Numbers = Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(_require_unique)]
Checksums = Annotated[
    dict[Text, Annotated[str, StringConstraints(pattern=_SHA256)]], Field(min_length=1)
]


class ViewSource(FrozenModel):
    """One camera of the dataset."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$")]
    """What stores, runs and environments call the view: letters, digits, `_`, `.` and `-`."""
    key: Key
    """The data format's key of the camera's frames: `observations/images/cam_high`."""


class ArraySource(FrozenModel):
    """The robot state or the action of the dataset."""

    key: Annotated[tuple[Key, ...], BeforeValidator(_one_or_several)]
    """The data format's key of the array, or several keys that are joined in this order."""
    columns: Numbers | None = None
    """Columns of the joined array, in this order, counted from 0; None takes all."""
    units: Text | None = None
    """What each column is and in which unit, in words; copied into stores and reports."""

    @property
    def key_paths(self) -> tuple[str, ...]:
        """The keys without leading slashes."""
        return tuple(key_path(key) for key in self.key)

    @field_serializer("key")
    def _one_key_as_it_was_written(self, key: tuple[str, ...]) -> str | tuple[str, ...]:
        return key[0] if len(key) == 1 else key


class EpisodeFilter(FrozenModel):
    """Which episodes are used, by their numbers in the files."""

    only: Numbers | None = None
    """Only these."""
    except_: Annotated[Numbers | None, Field(alias="except")] = None
    """All but these."""

    @model_validator(mode="after")
    def _one_of_the_two(self) -> "EpisodeFilter":
        if (self.only is None) == (self.except_ is None):
            raise ValueError("expected either `only` or `except`, found both or none; write one")
        return self


class Splits(FrozenModel):
    """Which episodes are kept out of training."""

    validation: Numbers | Text
    """Their numbers in the files, or the name of a subset that the files define: `valid`."""


class DataSource(FrozenModel):
    """One of several datasets of the same robot that are used together."""

    path: Text
    """The data: absolute, relative to the manifest, or beginning with `${VARIABLE}`."""
    format: FormatName | None = None
    """The file format; None detects it."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] = 1.0
    """How often training draws a step of this source per epoch, relative to the others."""
    episodes: EpisodeFilter | None = None
    """Which episodes are used; None uses all."""
    splits: Splits | None = None
    """Which episodes are kept out of training."""
    checksums: Checksums | None = None
    """sha256 of files, by their path below `path`; checked before frames are encoded."""
    instruction: Text | None = None
    """The instruction of every episode, in words; None: that in the files."""
    allow_outside: bool = False
    """Whether links and paths of the dataset may lead outside `path`."""
