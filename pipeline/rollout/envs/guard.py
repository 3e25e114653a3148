"""The layer between the project and other people's simulators: one way to refuse, and to fail.

`make_env` wraps every environment in a `GuardedEnv`. A wrong use of it is an `EnvError`. A
simulator may raise anything, at any call: physics that diverges, a renderer that loses its OpenGL
context, a defect. All of that, and numbers that are not finite, is an `EpisodeError` with
environment, seed and step. Errors of this project pass unchanged.
"""

import atexit
import difflib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from pipeline.errors import EnvError, EpisodeError
from pipeline.rollout.envs.base import ExpertEnv, RobotEnv, StepResult
from policy.errors import VlaError, one_line


def require_views(name: str, views: tuple[str, ...], offered: Collection[str]) -> None:
    """Raise an EnvError for views that are not offered, none at all, or one named twice."""
    if not views or len(set(views)) < len(views) or not set(views).issubset(offered):
        raise EnvError(
            f"{name}: expected distinct views from {', '.join(offered)}, found "
            f"{', '.join(views) or 'none'}; correct the views"
        )


def unknown_task(simulator: str, task: str, known: Collection[str]) -> EnvError:
    """Return the error for a task that a simulator does not have."""
    close = difflib.get_close_matches(task, known, n=1, cutoff=0.0)
    return EnvError(
        f"{simulator}/{task}: expected a name out of {len(known)}, found {task!r}; did you mean "
        f"{simulator}/{close[0]}?"
    )


class GuardedEnv:
    """A `RobotEnv` around another one.

    Every call may raise an `EpisodeError`, and an `EnvError` before `reset`, after `close`, and for
    a seed or an action that no simulator takes. It closes itself when the program ends.
    """

    def __init__(self, env: RobotEnv):
        self.name = env.name
        self.instruction = env.instruction
        self.view_names = env.view_names
        self.state_dim = env.state_dim
        self.action_dim = env.action_dim
        self.action_bounds = env.action_bounds
        self.control_hz = env.control_hz
        self.max_steps = env.max_steps
        self.unguarded = env
        self._seed, self._steps = 0, 0
        self._is_closed, self._has_begun, self._is_over = False, False, False
        # A renderer that is still open at exit makes PyOpenGL print tracebacks. MuJoCo ends EGL in
        # an exit hook of its own, registered while `env` was built, so this one runs before it.
        atexit.register(self.close)

    def reset(self, seed: int) -> None:
        if not 0 <= seed < 2**32:
            raise EnvError(
                f"{self.name}: expected a seed from 0 to 2^32 - 1, found {seed}; choose another"
            )
        self._seed, self._steps = seed, 0
        with self._guarded("reset"):
            self.unguarded.reset(seed)
        self._has_begun, self._is_over = True, False

    def render(self) -> UInt8[np.ndarray, "v h w 3"]:
        with self._guarded("render"):
            return self.unguarded.render()

    def effector_pixels(self) -> Float64[np.ndarray, "v 2"]:
        with self._guarded("effector_pixels"):
            return self.unguarded.effector_pixels()

    def state(self) -> Float32[np.ndarray, " s"]:
        with self._guarded("state"):
            return self._finite("state", self.unguarded.state())

    def step(self, action: Float32[np.ndarray, " a"]) -> StepResult:
        if action.shape != (self.action_dim,) or not np.isfinite(action).all():
            raise EnvError(
                f"{self.name}: expected {self.action_dim} finite numbers as the action, found "
                f"{action}; check the policy's action width and its training"
            )
        with self._guarded("step"):
            outcome = self.unguarded.step(action)
            self._steps += 1
            self._is_over = outcome.truncated
            self._finite("reward", np.asarray(outcome.reward))
            return outcome

    def close(self) -> None:
        """Free the simulator; a failure of it no longer matters, and closing twice is fine."""
        atexit.unregister(self.close)
        if not self._is_closed:
            self._is_closed = True
            with suppress(Exception):
                self.unguarded.close()

    @contextmanager
    def _guarded(self, call: str) -> Iterator[None]:
        problem = None
        if self._is_closed:
            problem = "an open environment, found a closed one; create a new one"
        elif call != "reset" and not self._has_begun:
            problem = "an episode, found none; call reset(seed) first"
        elif call in {"step", "expert_action"} and self._is_over:
            problem = "a running episode, found one that has ended; call reset(seed) first"
        if problem:
            raise EnvError(f"{self.name}: expected {problem}")
        try:
            yield
        except VlaError:
            raise
        except Exception as error:  # a simulator raises anything
            raise self._failure(
                f"{call} raised {type(error).__name__}: {one_line(error)}"
            ) from error

    def _finite(self, what: str, values: np.ndarray) -> np.ndarray:
        if not np.isfinite(values).all():
            raise self._failure(f"{what} is {np.array2string(values, threshold=8)}, not finite")
        return values

    def _failure(self, reason: str) -> EpisodeError:
        return EpisodeError(
            f"{self.name}: seed {self._seed}, step {self._steps}: {reason}; the simulator failed"
        )


class GuardedExpertEnv(GuardedEnv):
    """An `ExpertEnv` around another one."""

    def __init__(self, env: ExpertEnv):
        super().__init__(env)
        self.source = env.source
        self.revision = env.revision
        self.license = env.license
        self.state_units = env.state_units
        self.action_units = env.action_units
        self._expert = env

    def expert_action(self) -> Float32[np.ndarray, " a"]:
        with self._guarded("expert_action"):
            return self._finite("expert_action", self._expert.expert_action())
