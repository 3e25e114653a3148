"""Any Gymnasium environment with images, as a `RobotEnv`, described by a TOML file.

Views are resized for the encoder here, because an environment may have views of different sizes.
Whether a seed gives the same episode depends on the environment.
Source: Farama-Foundation/Gymnasium 1.4.0, core.py, envs/registration.py.
"""

import importlib
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import gymnasium
import numpy as np
from jaxtyping import Float32, Float64, UInt8
from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from pipeline.datasets.manifest.model import MANUAL
from pipeline.datasets.manifest.parts import Text
from pipeline.errors import ConfigError, EnvError
from pipeline.rollout.envs.base import DEFAULT_RENDER_SIZE, StepResult
from pipeline.rollout.envs.guard import require_views
from policy.errors import invalid_field, one_line
from policy.images import resize_images
from policy.spec import Fit, FrozenModel

RENDER_KEY: Final = "render()"


class GymnasiumView(FrozenModel):
    """One camera."""

    name: Text
    """Its name in the policy's manifest."""
    key: Text
    """Its path in the observation, `pixels/top`; or `render()`, the environment's own image."""
    rotate_180: bool = False
    """Turn the image, where the environment renders it upside-down."""


class GymnasiumState(FrozenModel):
    """The robot's own state."""

    key: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Its path in the observation, `agent_pos`, or several that are joined; `.` is all of it."""
    columns: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """Which columns are taken, counted from 0; None takes all."""
    units: Text
    """What each column is, in words."""

    @field_validator("key", mode="before")
    @classmethod
    def _one_or_several(cls, key: object) -> object:
        return (key,) if isinstance(key, str) else key


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

    id: Text
    """The environment's registered name."""
    module: Text | None = None
    """Module to import first, because that registers the environment."""
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """Arguments of the environment itself, the size of its images among them."""
    control_hz: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Control steps per second of simulated time; the recordings must have the same."""
    max_steps: Annotated[int, Field(ge=1)]
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
    """Read a configuration.

    Raises:
        ConfigError: the file cannot be read, is no TOML, or has an unknown, missing or impossible
            field.
    """
    try:
        return GymnasiumConfig.model_validate(tomllib.loads(file.read_text(encoding="utf-8-sig")))
    except ValidationError as error:
        found = one_line(repr(error.errors()[0]["input"]))
        raise ConfigError(
            f"{file}: {invalid_field(error)}, found {found}; correct it, {MANUAL}"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: expected a TOML file, found: {error}; correct it") from error


class GymnasiumEnv:
    """One Gymnasium environment; implements `RobotEnv`."""

    def __init__(
        self, file: str, views: tuple[str, ...], render_size: int, *, fit: Fit = "stretch"
    ) -> None:
        """Build the environment and read one observation; `reset` must follow.

        Args:
            file: the TOML file.
            views: names out of it, in the order in which the policy sees them.
            render_size: must be the default; only the environment's own arguments can change it.
            fit: how images that are not square become square.

        Raises:
            ConfigError: the file is wrong.
            EnvError: the environment cannot be built, or does not have what the file describes.
        """
        self.name = f"gymnasium:{file}"
        if render_size != DEFAULT_RENDER_SIZE:
            raise EnvError(
                f"{self.name}: expected render size {DEFAULT_RENDER_SIZE}, found {render_size}; "
                "the environment determines its image size: set its argument for it in [kwargs]"
            )
        config = load_gymnasium_config(Path(file))
        by_name = {view.name: view for view in config.views}
        require_views(self.name, views, by_name)
        self.instruction = config.instruction
        self.view_names = views
        self.control_hz = config.control_hz
        self.max_steps = config.max_steps
        self._config, self._fit = config, fit
        self._views = [by_name[view] for view in views]
        self._env: Any = self._build()
        try:
            space = self._env.action_space
            if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
                raise EnvError(
                    f"{self.name}: expected an action space of one axis (Box), found {space}; this "
                    "environment needs its own adapter"
                )
            self.action_dim: int = space.shape[0]
            is_sure = config.action.clip is not None
            self.action_bounds = None if is_sure else np.stack([space.low, space.high])
            self.reset(seed=0)
            self.state_dim = len(self.state())
            self.render()
        except BaseException:
            self.close()
            raise

    def reset(self, seed: int) -> None:
        self._observation, _ = self._env.reset(seed=seed)

    def render(self) -> UInt8[np.ndarray, "v 256 256 3"]:
        return np.stack([self._frame(view) for view in self._views])

    def effector_pixels(self) -> Float64[np.ndarray, "v 2"]:
        return np.full((len(self._views), 2), np.nan)  # Gymnasium does not know it

    def state(self) -> Float32[np.ndarray, " s"]:
        keys, columns = self._config.state.key, self._config.state.columns
        joined = np.concatenate(
            [np.ravel(self._lookup(self._observation, key, "state")) for key in keys]
        )
        if joined.dtype.kind not in "biuf":
            raise EnvError(
                f"{self.name}: state: expected numbers at {', '.join(keys)}, found {joined.dtype}; "
                "use keys of arrays"
            )
        if columns is not None and max(columns) >= len(joined):
            raise EnvError(
                f"{self.name}: state.columns: expected columns below {len(joined)}, found "
                f"{max(columns)}; correct them"
            )
        chosen = joined if columns is None else joined[list(columns)]
        return chosen.astype(np.float32)

    def step(self, action: Float32[np.ndarray, " a"]) -> StepResult:
        space = self._env.action_space
        clips = self._config.action.clip is not False
        applied = np.clip(action, space.low, space.high) if clips else action
        self._observation, reward, terminated, truncated, info = self._env.step(
            applied.astype(space.dtype)
        )
        is_over = bool(terminated or truncated)
        return StepResult(float(reward), self._is_solved(float(reward), info), is_over)

    def close(self) -> None:
        self._env.close()

    def _build(self) -> Any:
        if sys.platform == "linux":  # environments on MuJoCo look for a screen otherwise
            os.environ.setdefault("MUJOCO_GL", "egl")
        config = self._config
        needs_render = any(view.key == RENDER_KEY for view in config.views)
        try:
            if config.module is not None:
                importlib.import_module(config.module)
            return gymnasium.make(
                config.id,
                max_episode_steps=config.max_steps,
                disable_env_checker=True,
                render_mode="rgb_array" if needs_render else None,
                **config.kwargs,
            )
        except Exception as error:  # an environment raises anything
            raise EnvError(
                f"{self.name}: expected gymnasium.make to build {config.id}, found "
                f"{type(error).__name__}: {one_line(error)}; correct id, module or kwargs"
            ) from error

    def _frame(self, view: GymnasiumView) -> UInt8[np.ndarray, "256 256 3"]:
        if view.key == RENDER_KEY:
            image = np.asarray(self._env.render())
        else:
            image = np.asarray(self._lookup(self._observation, view.key, f"view {view.name}"))
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise EnvError(
                f"{self.name}: view {view.name}: expected uint8 (height, width, 3) RGB at "
                f"{view.key}, found {image.dtype} {image.shape}; use the key of an image"
            )
        turned = image[::-1, ::-1] if view.rotate_180 else image
        return np.asarray(resize_images(np.ascontiguousarray(turned)[None], self._fit)[0])

    def _is_solved(self, reward: float, info: Mapping[str, Any]) -> bool:
        success = self._config.success
        if success.info is None:
            assert success.reward_at_least is not None
            return reward >= success.reward_at_least
        found = np.asarray(self._lookup(info, success.info, "success.info"))
        if found.size != 1 or found.item() not in (0, 1):
            raise EnvError(
                f"{self.name}: success.info: expected true or false, or 0 or 1, at {success.info}, "
                f"found {np.array2string(found, threshold=4)}; use the key of a boolean, or write "
                "`reward_at_least`"
            )
        return bool(found.item())

    def _lookup(self, tree: Any, key: str, field: str) -> Any:
        """Follow a path such as `pixels/top`; `.` is the whole tree."""
        node = tree
        for part in [] if key == "." else key.split("/"):
            if not isinstance(node, Mapping) or part not in node:
                offered = ", ".join(node) if isinstance(node, Mapping) else ""
                raise EnvError(
                    f"{self.name}: {field}: expected {key}, found {offered or 'no entries'}; "
                    "correct the key"
                )
            node = node[part]
        return node
