"""Every Meta-World v3 task as a `RobotEnv` with a scripted expert; owns mujoco and metaworld.

The scene is Meta-World's own, goal marker included.
Source: Farama-Foundation/Metaworld 3.1.1, sawyer_xyz_env.py, env_dict.py, policies/.
Differs from the source: `reset` obeys its seed and leaves no stale positions, images of the
cameras that are mounted upside-down are turned, and shadows, reflections and multisampling are off.
"""

import warnings
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from pipeline.rollout.envs.base import StepResult
from pipeline.rollout.envs.guard import unknown_task
from pipeline.rollout.envs.rendering import MujocoEnv
from pipeline.versions import versions

# isort: split
# These import mujoco too, which `rendering` must be the first to do.
import mujoco
from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3, MT25_V3, MT50_V3
from metaworld.policies import ENV_POLICY_MAP

STATE_DIM: Final = 4  # hand x y z, gripper: sawyer_xyz_env.py, _get_curr_obs_combined_no_goal
ACTION_DIM: Final = 4  # hand displacement x y z, gripper effort: the same file, action_space
SUITES: Final = {"mt10": [*MT10_V3], "mt25": [*MT25_V3], "mt50": [*MT50_V3]}


class MetaWorldEnv(MujocoEnv):
    """One Meta-World v3 task; implements `ExpertEnv`."""

    source: str
    license: str = "MIT"
    """Meta-World's license; a recording is its simulator's output."""
    # sawyer_xyz_env.py: the distance of the claws, divided by 0.1 m and clipped to [0, 1].
    state_units: str = "hand position x y z in meters; gripper openness, 0 closed to 1 open"
    # sawyer_xyz_env.py: action_scale 1/100; _reset_hand opens the gripper with effort -1.
    action_units: str = (
        "hand displacement x y z, 1 = 0.01 m per step; gripper effort, -1 opens to 1 closes"
    )

    def __init__(self, task: str, views: tuple[str, ...], render_size: int) -> None:
        """Load the task (EnvError: there is no such task, or as for `MujocoEnv`)."""
        if task not in ALL_V3_ENVIRONMENTS:
            raise unknown_task("metaworld", task, [*ALL_V3_ENVIRONMENTS, *SUITES])
        self._task = _build_task(task)
        model, data = self._task.model, self._task.data
        super().__init__(f"metaworld/{task}", views, model, data, render_size)
        installed = [*versions("metaworld", "mujoco")]
        self.source = f"scripted expert of {installed[0]}, recorded with vla-data record"
        self.revision = ", ".join(installed)
        self.instruction = " ".join(task.split("-")[:-1])  # drawer-open-v3: "drawer open"
        self.state_dim, self.action_dim = STATE_DIM, ACTION_DIM
        self.control_hz: float = 1.0 / self._task.dt
        self.max_steps: int = self._task.max_path_length
        self._build_expert: Any = ENV_POLICY_MAP[task]  # typed as the abstract base there
        # corner, corner2, corner3, corner4: their images are turned by 180 degrees.
        up_axes = self._data.cam_xmat[self.cameras].reshape(-1, 3, 3)[:, 2, 1]
        is_fixed_to_world = self._model.cam_bodyid[self.cameras] == 0
        self._is_upside_down = is_fixed_to_world & (up_axes < 0)  # of each view

    def reset(self, seed: int) -> None:
        self._task.seed(seed)  # Meta-World's reset ignores its own seed argument
        self._task.reset()
        # Many tasks move an object by editing the model and stop there. Without this, the first
        # picture and the first observation show it where the reset's first of two draws put it.
        mujoco.mj_forward(self._model, self._data)
        self._task._prev_obs = self._task._get_curr_obs_combined_no_goal()
        self._observation: np.ndarray = self._task._get_obs()
        self._expert = self._build_expert()

    def render(self) -> UInt8[np.ndarray, "v h w 3"]:
        frames = super().render()
        frames[self._is_upside_down] = frames[self._is_upside_down, ::-1, ::-1]
        return frames

    def effector(self) -> Float64[np.ndarray, " 3"]:
        return np.asarray(self._task.tcp_center)

    def effector_pixels(self) -> Float64[np.ndarray, "v 2"]:
        pixels = super().effector_pixels()
        return np.where(self._is_upside_down[:, None], self._size - pixels, pixels)

    def state(self) -> Float32[np.ndarray, " s"]:
        return self._observation[:STATE_DIM].astype(np.float32)

    def step(self, action: Float32[np.ndarray, " a"]) -> StepResult:
        """Apply one action, clipped to [-1, 1], and advance one control step."""
        outcome = self._task.step(np.clip(action, -1.0, 1.0))
        self._observation, reward, _, truncated, info = outcome
        return StepResult(float(reward), bool(info["success"]), bool(truncated))

    def expert_action(self) -> Float32[np.ndarray, " a"]:
        """Return the scripted expert's action for the current step, clipped to [-1, 1]."""
        with warnings.catch_warnings():
            # The experts exceed the robot's range by design; it is clipped here.
            warnings.filterwarnings("ignore", r"Constant\(s\) may be too high", UserWarning)
            action = self._expert.get_action(self._observation)
        return np.asarray(np.clip(action, -1.0, 1.0), np.float32)

    def close(self) -> None:
        super().close()
        self._task.close()


def _build_task(task: str) -> Any:
    env = ALL_V3_ENVIRONMENTS[task]()
    env._freeze_rand_vec = False
    env._set_task_called = True
    env.seeded_rand_vec = True  # draw positions from `seed`, not from numpy's global state
    # As MT1 does: hide the goal and the experts of 20 tasks fail. The observation space holds the
    # goal's bounds, is cached, and clips the observation. `state` never contains the goal.
    env._partially_observable = False
    del env.sawyer_observation_space
    return env
