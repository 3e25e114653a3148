"""The tables of a manifest: views, number arrays, sources, episode filters and splits; their text.

`data_manifests/README.md` explains every field in words.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

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

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def _require_names(key: str) -> str:
    """Refuse a key that a reader would report as a damaged file."""
    if {"", ".", ".."} & set(key_path(key).split("/")):
        raise ValueError(
            f"expected names joined by single slashes, as a/b/c, found {key!r}; correct this key"
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
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"expected each number once, found {list(numbers)}; remove duplicates")
    return numbers


Key = Annotated[Text, AfterValidator(_require_names)]
Count = Annotated[int, Field(ge=0, strict=True)]
Numbers = Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(_require_unique)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Checksums = Annotated[dict[Text, Sha256], Field(min_length=1)]


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


class OneSource(FrozenModel):
    """What differs between datasets that are used together."""

    path: Text | None = None
    """The data: absolute, relative to the manifest, or beginning with `${VARIABLE}`."""
    format: FormatName | None = None
    """The file format; None detects it."""
    episodes: EpisodeFilter | None = None
    """Which episodes are used; None uses all."""
    splits: Splits | None = None
    """Which episodes are kept out of training; None lets the trainer choose."""
    checksums: Checksums | None = None
    """sha256 of files, by their path below `path`; checked before frames are encoded."""
    instruction: Text | None = None
    """The instruction of every episode, in words; None: that in the files."""
    allow_outside: bool = False
    """Whether links and paths of the dataset may lead outside `path`."""


class DataSource(OneSource):
    """One of several datasets of the same robot that are used together."""

    path: Text
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] = 1.0
    """How often training draws a step of this source per epoch, relative to the others."""


def toml_text(content: Mapping[str, Any]) -> str:
    """Write TOML: values first, then a `[table]` per mapping and `[[table]]`s per list of them.

    Args:
        content: strings, finite numbers, booleans, lists and mappings of these; no None.
    """
    lines, blocks = [], []
    for key, value in content.items():
        if isinstance(value, Mapping):
            blocks += [f"\n[{_key(key)}]", *_lines(value)]
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            for entry in value:
                blocks += [f"\n[[{_key(key)}]]", *_lines(entry)]
        else:
            lines += _lines({key: value})
    return "\n".join([*lines, *blocks]) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in table.items()]


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(_lines(value)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(entry) for entry in value) + "]"
    # JSON and TOML agree on strings, once non-ASCII text is left as it is, and on numbers; DEL is
    # the one character that JSON leaves and TOML forbids.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
