"""The TOML file that describes a Gymnasium environment: views, state, action, success.

A file decides which installed code runs, so it may only name packages that the user has installed
and that require gymnasium themselves: a file from elsewhere cannot bring code along, nor run code
next to it.
"""

import importlib.metadata
import importlib.util
import json
import tomllib
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlparse
from urllib.request import url2pathname

from pydantic import (
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.errors import ConfigError
from policy.errors import invalid_field, one_line
from policy.spec import FrozenModel

RENDER_KEY: Final = "render()"
_MANUAL: Final = "data_manifests/README.md explains every field"
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class GymnasiumView(FrozenModel):
    """One camera."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$")]
    """Its name in the policy's manifest."""
    key: Text
    """Its path in the observation, `pixels/top`; or `render()`, the environment's own image."""
    rotate_180: bool = False
    """Turn the image, where the environment renders it upside-down."""


class GymnasiumState(FrozenModel):
    """The robot's own state."""

    key: Text | Annotated[tuple[Text, ...], Field(min_length=1)]
    """Its path in the observation, `agent_pos`, or several that are joined; `.` is all of it."""
    columns: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """Which columns are taken, counted from 0; None takes all."""
    units: Text
    """What each column is, in words."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Every path, in order."""
        return (self.key,) if isinstance(self.key, str) else self.key


class GymnasiumAction(FrozenModel):
    """The robot's action."""

    units: Text
    """What each column is, in words."""
    clip: bool | None = None
    """Clip to the bounds of the action space; false where they are wrong, as in gym-aloha. Unsaid:
    clip, but roll out no policy that was trained on actions beyond them."""


class GymnasiumSuccess(FrozenModel):
    """When the task is solved: one of the two."""

    info: Text | None = None
    """Path of a boolean in the step's info: `is_success`."""
    reward_at_least: float | None = None
    """The reward of a step that solves the task."""

    @model_validator(mode="after")
    def _is_one_measure(self) -> "GymnasiumSuccess":
        if (self.info is None) == (self.reward_at_least is None):
            raise ValueError("expected either info or reward_at_least, found both or none")
        return self


class GymnasiumConfig(FrozenModel):
    """How to use one Gymnasium environment as a robot."""

    id: Annotated[str, StringConstraints(pattern=r"^[\w.-]+(/[\w.-]+)?(-v\d+)?$")]
    """The environment's registered name; `module:name` is refused, `module` is its own field."""
    module: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")] | None = (
        None
    )
    """Module of an installed package to import first, because that registers the environment."""
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """Arguments of the environment itself, the size of its images among them."""
    control_hz: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Control steps per second of simulated time; the recordings must have the same."""
    max_steps: Annotated[int, Field(ge=1, le=1_000_000)]
    """Control steps until the time limit; replaces the one of the registration."""
    instruction: str = ""
    """What to do, in words, for a policy with instructions."""
    views: Annotated[tuple[GymnasiumView, ...], Field(min_length=1)]
    """Cameras that a policy may ask for."""
    state: GymnasiumState
    action: GymnasiumAction
    success: GymnasiumSuccess

    @field_validator("views")
    @classmethod
    def _have_different_names(cls, views: tuple[GymnasiumView, ...]) -> tuple[GymnasiumView, ...]:
        names = [view.name for view in views]
        if len(set(names)) < len(names):
            raise ValueError(f"expected different names, found {', '.join(names)}")
        return views


def load_gymnasium_config(file: Path) -> GymnasiumConfig:
    """Read a configuration, and check that its module is one that may be imported.

    Raises:
        ConfigError: the file cannot be read, is no TOML, or has an unknown, missing or impossible
            field; or its module belongs to no installed package that requires gymnasium.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            f"{file}: expected a TOML file, found {error.strerror}; correct gymnasium:<file>"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: expected TOML, found {error}; correct the file") from error
    try:
        config = GymnasiumConfig.model_validate(content)
    except ValidationError as error:
        found = one_line(repr(error.errors()[0]["input"]))
        raise ConfigError(
            f"{file}: {invalid_field(error)}, found {found}; correct it, {_MANUAL}"
        ) from error
    if config.module is not None:
        _require_installed(config.module, file)
    return config


def _require_installed(module: str, file: Path) -> None:
    """Refuse a module unless it belongs to an installed distribution that requires gymnasium."""
    package = module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(package)  # a top-level module is found without running it
    except ValueError:  # `__main__`
        spec = None
    if spec is not None and spec.origin is not None:
        origin = Path(spec.origin).resolve()
        for distribution in importlib.metadata.distributions():
            if _requires_gymnasium(distribution) and _owns(distribution, package, origin):
                return
    raise ConfigError(
        f"{file}: module: expected a module of an installed package that requires gymnasium, found "
        f"{module}; install the package that registers the environment, with pip and a pyproject "
        "file that names gymnasium as a dependency"
    )


def _requires_gymnasium(distribution: importlib.metadata.Distribution) -> bool:
    for requirement in distribution.requires or ():
        name, _, marker = requirement.partition(";")
        if name.lower().startswith("gymnasium") and "extra" not in marker:
            return True
    return False


def _owns(distribution: importlib.metadata.Distribution, package: str, origin: Path) -> bool:
    """Whether a distribution installed the file `origin`, or is an editable folder of it."""
    for path in distribution.files or ():
        if path.as_posix() in {f"{package}/__init__.py", f"{package}.py"}:
            return Path(str(distribution.locate_file(path))).resolve() == origin
    link = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not link.get("dir_info", {}).get("editable", False):
        return False
    return origin.is_relative_to(Path(url2pathname(urlparse(link["url"]).path)).resolve())
