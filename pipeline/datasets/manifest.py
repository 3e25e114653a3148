"""What a dataset is: a small TOML file that names its files, its views and its units.

Knows TOML and paths; opens no dataset. `data_manifests/README.md` explains every field in words.
"""

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    field_validator,
)

from pipeline.errors import ManifestError

MANUAL: Final = "data_manifests/README.md explains every field"
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def _refuse_no_place(key: str) -> str:
    """A format would take such a key for a damaged file."""
    if "\0" in key or any(part in ("", ".") for part in _key_path(key).split("/")):
        raise ValueError(
            "expected names joined by single slashes, as observations/images/front, found "
            f"{key!r}; correct this key"
        )
    return key


def _key_path(key: str) -> str:
    return key.removeprefix("/")


_Key = Annotated[_Text, AfterValidator(_refuse_no_place)]


class ViewSource(BaseModel):
    """One camera of the dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$")]
    """What stores, runs and environments call the view: letters, digits, `_`, `.` and `-`."""
    key: _Key
    """Where the data format keeps the camera's frames: `observations/images/cam_high`."""


class ArraySource(BaseModel):
    """The robot state or the action of the dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: _Key
    """Where the data format keeps the array: `observations/qpos`."""
    units: _Text
    """What each column is and in which unit, in words; copied into stores and reports."""


class Manifest(BaseModel):
    """A dataset: where it comes from, where it lies, and what its arrays mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: _Text
    """What reports call the dataset."""
    source: _Text
    """Where the data comes from: an address, a paper, or how it was made."""
    revision: _Text
    """Which state of that source: a commit, a date, the version of a simulator."""
    licence: _Text
    """Under which terms the data may be used."""
    format: Literal["aloha_hdf5"]
    """How the files are laid out; `pipeline/datasets` has one reader a format."""
    path: _Text
    """The data as written: absolute, relative to the manifest, or beginning with `${VARIABLE}`."""
    fps: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
    """Control steps a second."""
    views: Annotated[tuple[ViewSource, ...], Field(min_length=1)]
    """Cameras, in the order in which the policy sees them."""
    state: ArraySource
    """What the robot knows of itself at each step."""
    action: ArraySource
    """What the robot was told at each step."""
    resize: tuple[Literal[256], Literal[256]] | None = None
    """Opt-in for frames of another size: they are resized to 256x256 pixels; None refuses them."""
    _root: Path | None = PrivateAttr(default=None)

    @field_validator("views")
    @classmethod
    def _views_are_different_cameras(cls, views: tuple[ViewSource, ...]) -> tuple[ViewSource, ...]:
        names = [view.name for view in views]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"expected names that differ, found {', '.join(repeated)} more than once; "
                "rename one of them"
            )
        keys = [_key_path(view.key) for view in views]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise ValueError(
                f"expected keys that differ, found {', '.join(repeated)} more than once; "
                "give each view its own camera"
            )
        return views

    @field_validator("path")
    @classmethod
    def _path_is_one_of_a_file_system(cls, path: str) -> str:
        if "\0" in path:
            raise ValueError(f"expected a path without NUL characters, found {path!r}; correct it")
        return path

    @property
    def root(self) -> Path:
        """The data on this machine; its existence is the reader's affair.

        Raises:
            ManifestError: the manifest was rebuilt from a store, without the place of the data.
        """
        if self._root is None:
            raise ManifestError(
                f"manifest of {self.name}: expected a data folder, found none, because it was read "
                "back from a store; load the manifest file to open the data"
            )
        return self._root

    @property
    def view_names(self) -> tuple[str, ...]:
        """Camera names, in order."""
        return tuple(view.name for view in self.views)

    def digest(self) -> str:
        """Return the sha256 (64 hex digits) of the fields that decide a store's rows.

        These are format, revision, fps, resize, the views in order, and the keys of state and
        action. Path, name, source, licence and units are left out: data may move and words may be
        corrected without a new embedding.
        """
        deciding = {
            "format": self.format,
            "revision": self.revision,
            "fps": self.fps,
            "resize": self.resize,
            "views": [[view.name, view.key] for view in self.views],
            "state": self.state.key,
            "action": self.action.key,
        }
        canonical = json.dumps(deciding, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return every field as plain JSON values, `path` as it was written, without `root`."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_toml(self) -> str:
        """Return the text of a manifest file that `load_manifest` reads back as this manifest."""
        content = self.to_dict()
        views, state, action = (content.pop(key) for key in ("views", "state", "action"))
        blocks = [content, *views, state, action]
        headers = ["", *("\n[[views]]\n" for _ in views), "\n[state]\n", "\n[action]\n"]
        return "".join(
            header + "".join(f"{key} = {_toml_value(value)}\n" for key, value in block.items())
            for header, block in zip(headers, blocks, strict=True)
        )

    @classmethod
    def from_dict(
        cls, content: Mapping[str, Any], *, root: Path | None = None, origin: str = "manifest"
    ) -> "Manifest":
        """Build a manifest from plain values, such as `to_dict` returns.

        Args:
            content: the fields.
            root: the data on this machine; None where only the description is needed.
            origin: the file or store that the values come from, for messages.

        Raises:
            ManifestError: a field is unknown, missing or impossible.
        """
        try:
            manifest = cls.model_validate(dict(content))
        except ValidationError as error:
            raise ManifestError(f"{origin}: {_first_problem(error)}") from error
        manifest._root = root
        return manifest


def load_manifest(path: Path | str) -> Manifest:
    """Read and check a manifest file; the data itself is not touched.

    Args:
        path: a TOML file, such as those in `data_manifests/`.

    Returns:
        The manifest, with `root` resolved to an absolute path.

    Raises:
        ManifestError: the file is absent, is no TOML, or a field is unknown, missing or impossible.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ManifestError(
            f"{path}: expected a manifest file, found nothing; correct the path, or write one: "
            f"{MANUAL}"
        ) from error
    except OSError as error:
        raise ManifestError(
            f"{path}: expected a readable manifest file, found {error.strerror}; give a TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ManifestError(
            f"{path}: expected TOML in UTF-8, found: {error}; correct that place"
        ) from error
    manifest = Manifest.from_dict(content, origin=str(path))
    manifest._root = _resolve(manifest.path, path)
    return manifest


def _resolve(written: str, manifest_file: Path) -> Path:
    match = _VARIABLE.match(written)
    rest = written[match.end() :] if match else written
    if "$" in rest or written.startswith("~"):
        raise ManifestError(
            f"{manifest_file}: path: expected an absolute path, one relative to this file, or one "
            f'that begins with a variable as in "${{DATA_ROOT}}/x", found {written!r}; a home '
            'folder is "${HOME}"'
        )
    value = ""
    if match:
        value = os.environ.get(match[1], "")
        if not value:
            raise ManifestError(
                f"{manifest_file}: path: expected the environment variable {match[1]} to be set, "
                f"found it unset or empty; run `export {match[1]}=/folder/of/your/data` first"
            )
    return (manifest_file.absolute().parent / (value + rest)).resolve()


def _toml_value(value: str | float | list[int]) -> str:
    # JSON and TOML agree on strings, once non-ASCII text is left as it is, and on numbers; DEL is
    # the one character that JSON leaves and TOML forbids.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _first_problem(error: ValidationError) -> str:
    """Turn pydantic's several lines into: key: expected, found, what to do."""
    problems = error.errors()
    problem = problems[0]
    key = ""
    for part in problem["loc"]:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    more = f" ({len(problems) - 1} more to correct)" if len(problems) > 1 else ""
    if problem["type"] == "missing":
        text = f"expected this key, found none; add it, {MANUAL}"
    elif problem["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {
            "views": ViewSource,
            "state": ArraySource,
            "action": ArraySource,
        }
        is_nested = len(problem["loc"]) > 1
        model = models[str(problem["loc"][0])] if is_nested else Manifest
        hint = "; a key below a [table] line belongs to that table" if is_nested else ""
        text = (
            f"expected one of {', '.join(model.model_fields)}, found an unknown key; rename or "
            f"remove it{hint}"
        )
    elif problem["type"] == "value_error":
        text = str(problem["ctx"]["error"])
    else:
        wanted = problem["msg"].removeprefix("Input should be ")
        wanted = wanted[0].lower() + wanted[1:]
        text = f"expected {wanted}, found {problem['input']!r}; correct it, {MANUAL}"
    return f"{key}: {text}{more}"
