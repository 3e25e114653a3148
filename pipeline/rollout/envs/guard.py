"""The one door to other people's simulators: what they raise, or show as NaN, gets a name here.

A simulator may raise whatever it likes, at any call: physics that diverges, a renderer whose OpenGL
is lost, a defect. `make_env` puts every environment behind a `GuardedEnv`, so that the caller sees
an `EpisodeError` with environment, seed and step instead. Errors of this project pass unchanged:
they say that an environment is used or described in a wrong way.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from pipeline.errors import EpisodeError
from pipeline.rollout.envs.base import ExpertEnv, RobotEnv, StepResult
from policy.errors import VlaError

MAX_REASON: Final = 300  # characters of a foreign message


class GuardedEnv:
    """A `RobotEnv` around another one; every call of it may raise an `EpisodeError`."""

    def __init__(self, env: RobotEnv):
        """Guard an environment that has just been built."""
        self.name = env.name
        self.view_names = env.view_names
        self.state_dim = env.state_dim
        self.action_dim = env.action_dim
        self.action_bounds = env.action_bounds
        self.control_hz = env.control_hz
        self.max_steps = env.max_steps
        self.unguarded = env
        """The environment itself."""
        self._seed, self._steps = 0, 0

    def reset(self, seed: int) -> None:
        """Start an episode; see `RobotEnv`."""
        self._seed, self._steps = seed, 0
        with self._guarded("reset"):
            self.unguarded.reset(seed)

    def render(self) -> UInt8[np.ndarray, "v h w 3"]:
        """Render every view; see `RobotEnv`."""
        with self._guarded("render"):
            return self.unguarded.render()

    def effector_pixels(self) -> Float64[np.ndarray, "v 2"]:
        """Return where the end-effector is in each view; see `RobotEnv`."""
        with self._guarded("effector_pixels"):
            return self.unguarded.effector_pixels()

    def state(self) -> Float32[np.ndarray, " s"]:
        """Return finite numbers; see `RobotEnv`."""
        with self._guarded("state"):
            return self._finite("state", self.unguarded.state())

    def step(self, action: Float32[np.ndarray, " a"]) -> StepResult:
        """Apply one action; the reward is finite; see `RobotEnv`."""
        with self._guarded("step"):
            outcome = self.unguarded.step(action)
            self._steps += 1
            self._finite("reward", np.asarray(outcome.reward))
            return outcome

    def close(self) -> None:
        """Free the simulator; one that fails at this is of no further interest."""
        with suppress(Exception):
            self.unguarded.close()

    @contextmanager
    def _guarded(self, call: str) -> Iterator[None]:
        try:
            yield
        except VlaError:
            raise
        except Exception as error:  # a simulator raises whatever it likes
            reason = " ".join(str(error).split())[:MAX_REASON]
            raise self._failure(f"{call} raised {type(error).__name__}: {reason}") from error

    def _finite(self, what: str, values: np.ndarray) -> np.ndarray:
        if not np.isfinite(values).all():
            raise self._failure(f"{what} is {np.array2string(values, threshold=8)}, not finite")
        return values

    def _failure(self, reason: str) -> EpisodeError:
        return EpisodeError(
            f"{self.name}: seed {self._seed}, step {self._steps}: {reason}; a failure of the "
            "simulator"
        )


class GuardedExpertEnv(GuardedEnv):
    """An `ExpertEnv` around another one."""

    def __init__(self, env: ExpertEnv):
        """Guard an environment that has just been built."""
        super().__init__(env)
        self.source = env.source
        self.revision = env.revision
        self.license = env.license
        self.state_units = env.state_units
        self.action_units = env.action_units
        self._expert = env

    def expert_action(self) -> Float32[np.ndarray, " a"]:
        """Return the expert's action, finite; see `ScriptedExpert`."""
        with self._guarded("expert_action"):
            return self._finite("expert_action", self._expert.expert_action())
