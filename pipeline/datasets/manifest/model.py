"""The manifest of a dataset: a small TOML file that names its files, its views and its units.

`data_manifests/README.md` explains every field in words.
"""

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from pipeline.datasets.manifest.parts import (
    ArraySource,
    DataSource,
    EpisodeFilter,
    OneSource,
    Splits,
    Text,
    ViewSource,
    key_path,
    toml_text,
)
from pipeline.errors import ConfigError, ManifestError
from pipeline.storage.location import Location, is_address, parse_location
from policy.spec import Fit

_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
MANUAL: Final = "data_manifests/README.md explains every field"
_TABLES: Final[Mapping[str, type[BaseModel]]] = {
    "views": ViewSource,
    "state": ArraySource,
    "action": ArraySource,
    "sources": DataSource,
    "episodes": EpisodeFilter,
    "splits": Splits,
}


class Manifest(OneSource):
    """A dataset: its origin, its path, and the meaning of its arrays."""

    name: Text
    """What reports call the dataset."""
    source: Text | None = None
    """Where the data comes from: an address, a paper, or how it was made."""
    revision: Text | None = None
    """Which state of that source: a commit, a date, the version of a simulator."""
    license: Text | None = None
    """Under which terms the data may be used."""
    sources: tuple[DataSource, ...] = ()
    """Several datasets used together, instead of `path` and the other fields of one source."""
    fps: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
    """Control steps per second."""
    views: Annotated[tuple[ViewSource, ...], Field(min_length=1)]
    """Cameras, in the order in which the policy sees them."""
    state: ArraySource
    """The robot's measured state at each step."""
    action: ArraySource
    """The command to the robot at each step."""
    resize: tuple[Literal[256], Literal[256]] | None = None
    """Opt-in for frames of another size: they are resized to 256x256 pixels; None refuses them."""
    fit: Fit = "stretch"
    """With `resize`, how frames that are not square become so: `stretch` changes their aspect
    ratio, `crop` keeps the square in the middle, `pad` adds black bars. Live images too."""
    color_order: Literal["rgb", "bgr"] = "rgb"
    """Order of the color channels in the files; `bgr` is converted to RGB while reading."""
    action_shift: Annotated[int, Field(strict=True, ge=-1000, le=1000)] = 0
    """Control steps by which an action is stored too early (above 0) or too late for its frame:
    step t gets the action of t - shift, the first or last one at the ends."""

    @field_validator("views")
    @classmethod
    def _views_are_different_cameras(cls, views: tuple[ViewSource, ...]) -> tuple[ViewSource, ...]:
        names, keys = [view.name for view in views], [key_path(view.key) for view in views]
        for kind, values in (("names", names), ("keys", keys)):
            repeated = sorted({value for value in values if values.count(value) > 1})
            if repeated:
                raise ValueError(
                    f"expected distinct {kind}, found {', '.join(repeated)} more than once"
                )
        return views

    @model_validator(mode="after")
    def _either_path_or_sources(self) -> "Manifest":
        if self.path is None and not self.sources:
            raise ValueError(
                f"path: expected this key, or [[sources]] blocks, found none; add it, {MANUAL}"
            )
        for field in OneSource.model_fields:
            if self.sources and field in self.model_fields_set:
                raise ValueError(
                    f"{field}: expected it inside each of the [[sources]] blocks, found it at the "
                    "top; move it to the source that it belongs to"
                )
        return self

    @property
    def data_sources(self) -> tuple[DataSource, ...]:
        """The sources in order; a single one from `path` if the manifest has no `sources`."""
        fields = {field: getattr(self, field) for field in OneSource.model_fields}
        return self.sources or (DataSource.model_construct(**fields),)

    @property
    def view_names(self) -> tuple[str, ...]:
        """Camera names, in order."""
        return tuple(view.name for view in self.views)

    def digest(self) -> str:
        """Return the sha256 (64 hex digits) of the fields that decide a store's rows.

        Path, format, weights, splits, checksums, name, source, license, units and instruction are
        left out: data may move and texts may be corrected without a new embedding.
        """
        filters = [source.episodes for source in self.data_sources]
        deciding = {
            "revision": self.revision,
            "fps": self.fps,
            "resize": self.resize,
            "fit": self.fit,
            "color_order": self.color_order,
            "action_shift": self.action_shift,
            "views": [[view.name, key_path(view.key)] for view in self.views],
            "state": [self.state.key_paths, self.state.columns],
            "action": [self.action.key_paths, self.action.columns],
            "episodes": [
                kept and [sorted(kept.only or ()), sorted(kept.except_ or ())] for kept in filters
            ],
        }
        canonical = json.dumps(deciding, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are not defaults as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    def to_toml(self) -> str:
        """Return the text of a manifest file that `load_manifest` reads back as this manifest."""
        return toml_text(self.to_dict())

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, origin: str = "manifest") -> "Manifest":
        """Build a manifest from plain values, such as `to_dict` returns; `origin` names their file.

        Raises:
            ManifestError: a field is unknown, missing or impossible.
        """
        try:
            return cls.model_validate(dict(content))
        except ValidationError as error:
            raise ManifestError(f"{origin}: {_first_problem(error, content)}") from error


@dataclass(frozen=True)
class LoadedManifest:
    """A manifest that was read from a file, with the paths of its data."""

    manifest: Manifest
    roots: tuple[Location, ...]
    """The path or the address of each of `manifest.data_sources`; it need not exist."""
    origin: str
    """The manifest file, for messages."""


def load_manifest(path: Path | str) -> LoadedManifest:
    """Read and check a manifest file; the data itself is not read.

    Returns:
        The manifest, and its `roots` as absolute paths, with their links, or addresses.

    Raises:
        ManifestError: the file is missing or not TOML, or a field is unknown, missing or invalid.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ManifestError(
            f"{path}: expected a manifest, TOML in UTF-8, found: {error}; correct it, {MANUAL}"
        ) from error
    return parse_manifest(content, path)


def parse_manifest(content: Mapping[str, Any], path: Path) -> LoadedManifest:
    """Check the content of a manifest file that is, or would be, at `path`; see `load_manifest`."""
    manifest = Manifest.from_dict(content, origin=str(path))
    roots = tuple(
        _resolve(source.path, path, f"sources[{index}].path" if manifest.sources else "path")
        for index, source in enumerate(manifest.data_sources)
    )
    return LoadedManifest(manifest, roots, str(path))


def _resolve(written: str, manifest_file: Path, key: str) -> Location:
    where, folder = f"{manifest_file}: {key}", manifest_file.absolute().parent
    match = _VARIABLE.match(written)
    rest = written[match.end() :] if match else written
    if "://" not in rest and ("$" in rest or written.startswith("~")):
        raise ManifestError(
            f"{where}: expected an absolute path, one relative to this file, or one that begins "
            f'with a variable as in "${{HOME}}/x", found {written!r}'
        )
    if match:
        value = os.environ.get(match[1], "")
        if not value:
            raise ManifestError(
                f"{where}: expected the environment variable {match[1]} to be set, found it unset "
                f"or empty; run `export {match[1]}=/folder/of/your/data` first"
            )
        rest = value + rest
        if not Path(value).is_absolute():  # as in every other command of the shell that set it
            folder = Path.cwd()
    if is_address(rest):
        try:
            return parse_location(rest)
        except ConfigError as error:  # which repeats no secret
            raise ManifestError(f"{where}: {error}") from error
    # Links stay: a file's name tells its layout, and a download cache links to nameless ones.
    return Path(os.path.normpath(folder / rest))


def _first_problem(error: ValidationError, content: Mapping[str, Any]) -> str:
    """Describe the first problem in one line: key, expected, found, fix; count the others."""
    problems = error.errors()
    keys = [_key(problem, content) for problem in problems]
    # The branches of a union are reported one by one for the same key.
    more = f" ({len(set(keys)) - 1} more to correct)" if len(set(keys)) > 1 else ""
    return ": ".join(filter(None, [keys[0], _text(problems[0])])) + more


def _key(problem: ErrorDetails, content: Mapping[str, Any]) -> str:
    """Return the key as in the file, without pydantic's names of a union's branches."""
    key: str = ""
    node: Any = content
    for part in problem["loc"]:
        if isinstance(part, int):
            if isinstance(node, list | tuple) and part < len(node):
                key, node = f"{key}[{part}]", node[part]
        elif isinstance(node, Mapping) and (part in node or problem["type"] == "missing"):
            key, node = f"{key}.{part}" if key else part, node.get(part)
    return key


def _text(problem: ErrorDetails) -> str:
    if problem["type"] == "missing":
        return f"expected this key, found none; add it, {MANUAL}"
    if problem["type"] == "extra_forbidden":
        tables = [part for part in problem["loc"][:-1] if isinstance(part, str)]
        fields = (_TABLES[tables[-1]] if tables else Manifest).model_fields
        names = ", ".join(field.alias or name for name, field in fields.items())
        hint = "; a key below a [table] line belongs to that table" if tables else ""
        return f"expected one of {names}, found an unknown key; rename or remove it{hint}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    wanted = problem["msg"].removeprefix("Input should be ")
    found = repr(problem["input"])[:200]
    return f"expected {wanted[0].lower()}{wanted[1:]}, found {found}; correct it, {MANUAL}"
