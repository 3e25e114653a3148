"""The interface of a simulator or robot: views, state, action, success."""

from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from policy.spec import FRAME_SIZE

DEFAULT_RENDER_SIZE: Final = FRAME_SIZE[0]
"""Width and height in pixels of rendered images: the encoder's own, so nothing is resized."""
FIRST_ROLLOUT_SEED: Final = 100_000
"""Recordings use seeds below this one, rollouts this one and up: none is seen in training."""


@dataclass(frozen=True)
class StepResult:
    """The outcome of one control step."""

    reward: float
    """The simulator's own reward, in its own scale."""
    success: bool
    """The task is solved at this step, by the simulator's own measure."""
    truncated: bool
    """The simulator's time limit is reached; a further step would be an error."""


@runtime_checkable  # the test run checks return types
class RobotEnv(Protocol):
    """A robot with cameras that can be reset to a seed and stepped."""

    name: str
    """What `make_env` was called with, for reports: `metaworld/drawer-open-v3`."""
    instruction: str
    """The task in words, for a policy with instructions; empty where the simulator has none."""
    view_names: tuple[str, ...]
    """Camera names, in the order of `render`."""
    state_dim: int
    action_dim: int
    action_bounds: Float32[np.ndarray, "2 a"] | None
    """Lowest and highest action that `step` does not clip, where these are another's word that may
    not be the recordings'; None where they are known to be right, or nothing is clipped."""
    control_hz: float
    """Control steps per second of simulated time."""
    max_steps: int
    """Control steps until the simulator's own time limit."""

    def reset(self, seed: int) -> None:
        """Start an episode; the same seed gives the same episode, bit for bit."""

    def render(self) -> UInt8[np.ndarray, "v h w 3"]:
        """Render every view now, RGB, upright, values in [0, 255]; slow, so call it when needed."""

    def effector_pixels(self) -> Float64[np.ndarray, "v 2"]:
        """Return column and row of the end-effector in each view, in pixels of `render`.

        It may be outside of the image; NaN where it is behind the camera, or unknown.
        """

    def state(self) -> Float32[np.ndarray, " s"]:
        """Return the robot's own state; nothing about the objects."""

    def step(self, action: Float32[np.ndarray, " a"]) -> StepResult:
        """Apply one action, clipped to the robot's range, and advance one control step."""

    def close(self) -> None:
        """Free the renderer and the simulator."""


@runtime_checkable
class ExpertEnv(RobotEnv, Protocol):
    """An environment that can be recorded: it ships an expert that sees the simulator's state."""

    source: str
    """Where recordings come from, in words."""
    revision: str
    """Versions of what decides the recordings."""
    license: str
    """Terms of the recordings."""
    state_units: str
    """Columns of `state`, with units."""
    action_units: str
    """Columns of the action, with units."""

    def expert_action(self) -> Float32[np.ndarray, " a"]:
        """Return the expert's action, within the robot's range; call it once per step."""
