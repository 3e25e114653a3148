"""gym-aloha's two bimanual tasks as `RobotEnv`s: absolute joint targets, any camera of the scene.

Scene, control, state, reward and the draw of the objects are gym-aloha's own, at 50 Hz; a test
steps both side by side. `aloha/transfer-cube` ships an expert.
Source: huggingface/gym-aloha 0.1.5, tasks/sim.py, env.py, utils.py, assets/.
Differs from the source: only the chosen cameras are rendered, and only when needed; images are
square, where gym-aloha's are 640x480 (so they show less at the sides); shadows, reflections and
multisampling are off; the poses of objects belong to the environment instead of to a global
variable, so that several can be in one process.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64

from pipeline.rollout.envs.base import StepResult
from pipeline.rollout.envs.guard import unknown_task
from pipeline.rollout.envs.rendering import MujocoEnv
from pipeline.versions import versions

# isort: split
# These import mujoco, which `rendering` must be the first to do.
from dm_control.mujoco import Physics
from gym_aloha.constants import ASSETS_DIR, DT, JOINTS, START_ARM_POSE
from gym_aloha.tasks.sim import BimanualViperXTask, InsertionTask, TransferCubeTask
from gym_aloha.utils import sample_box_pose, sample_insertion_pose

from pipeline.rollout.envs.aloha_expert import plan_transfer

# tonyzhaozh/act@1a39fda, constants.py: `episode_len` of both scripted tasks, which LeRobot's
# evaluation takes too. gym-aloha registers 300, in which ACT's own demonstrations do not end.
MAX_STEPS: Final = 400
SOLVED_REWARD: Final = 4  # env.py: the last of four stages
GRIPPER_COLUMNS: Final = (6, 13)
EFFECTOR_SITE: Final = "cali_right_site1"  # between the right gripper's fingers


# Of each task: its MJCF file; control, state and reward; from a seed to the pose of every object
# (x, y, z in meters, quaternion wxyz).
SCENES: Final[dict[str, tuple[str, type[BimanualViperXTask], Callable[[int], Any]]]] = {
    "transfer-cube": ("bimanual_viperx_transfer_cube.xml", TransferCubeTask, sample_box_pose),
    "insertion": ("bimanual_viperx_insertion.xml", InsertionTask, sample_insertion_pose),
}


class AlohaEnv(MujocoEnv):
    """One gym-aloha task; implements `RobotEnv`."""

    license: str = "Apache-2.0"
    """gym-aloha's license; a recording is its simulator's output."""
    state_units: str = (
        "left arm: 6 joints in radians, gripper 0 closed to 1 open; right arm: the same"
    )
    action_units: str = (
        "joint targets, absolute, columns as in the state: radians, gripper 0 closed to 1 open"
    )

    def __init__(self, task: str, views: tuple[str, ...], render_size: int) -> None:
        """Load `transfer-cube` or `insertion` and its renderer; `reset` must follow.

        Cameras: left_pillar, right_pillar, top, angle, front_close, left_wrist, right_wrist.
        Errors as for `MujocoEnv`.
        """
        file, build_task, self._sample_poses = SCENES[task]
        self._task: BimanualViperXTask = build_task()
        self._physics = Physics.from_xml_path(str(ASSETS_DIR / file))
        model: Any = self._physics.model.ptr
        data: Any = self._physics.data.ptr
        super().__init__(f"aloha/{task}", views, model, data, render_size)
        self.instruction = task.replace("-", " ")
        self.revision = ", ".join(versions("gym-aloha", "dm-control", "mujoco"))
        self.state_dim = self.action_dim = len(JOINTS)
        self.control_hz: float = 1.0 / DT
        self.max_steps = MAX_STEPS
        self._substeps = round(DT / model.opt.timestep)
        # Each gripper has two actuators, its fingers, behind one column from 0 to 1.
        limits = np.delete(model.actuator_ctrlrange, (7, 15), axis=0)
        limits[list(GRIPPER_COLUMNS)] = 0.0, 1.0
        self._action_low, self._action_high = limits.astype(np.float32).T

    def reset(self, seed: int) -> None:
        with self._physics.reset_context():  # clears all state, the solver's warm start too
            poses = np.ravel(self._sample_poses(seed))
            self._data.qpos[:] = np.concatenate([START_ARM_POSE, poses])
            self._data.ctrl[:] = START_ARM_POSE
        # gym-aloha resets within a reset: the solver resumes from where it ended the first time,
        # which decides the last bits of an episode.
        self._physics.after_reset()
        self._steps = 0

    def effector(self) -> Float64[np.ndarray, " 3"]:
        # The right arm picks the cube or the peg up, so its path shows most of an episode.
        return np.asarray(self._data.site(EFFECTOR_SITE).xpos)

    def state(self) -> Float32[np.ndarray, " s"]:
        return np.asarray(self._task.get_qpos(self._physics), np.float32)

    def step(self, action: Float32[np.ndarray, " a"]) -> StepResult:
        """Apply one target for all joints, clipped to their range, and advance 0.02 s."""
        self._task.before_step(np.clip(action, self._action_low, self._action_high), self._physics)
        self._physics.step(self._substeps)
        self._steps += 1
        reward = self._task.get_reward(self._physics)
        return StepResult(float(reward), reward == SOLVED_REWARD, self._steps == MAX_STEPS)

    def close(self) -> None:
        super().close()
        self._physics.free()


class AlohaTransferCubeEnv(AlohaEnv):
    """The task that ships a scripted expert; implements `ExpertEnv`."""

    source: str = (
        "scripted handover of frozen-vla (aloha_expert.py) in gym-aloha, recorded with vla-data "
        "record"
    )

    def reset(self, seed: int) -> None:
        super().reset(seed)
        robot: np.ndarray = self._task.get_qpos(self._physics)
        x, y = self._data.body("box").xpos[:2]
        self._plan: Float32[np.ndarray, "t 14"] = plan_transfer(robot, (x, y), MAX_STEPS)

    def expert_action(self) -> Float32[np.ndarray, " a"]:
        """Return the plan's target for the current step; the plan knows where the cube was."""
        return np.asarray(self._plan[self._steps])


def make_aloha_env(task: str, views: tuple[str, ...], render_size: int) -> AlohaEnv:
    """Build a task; arguments and errors as for `AlohaEnv` (EnvError: there is no such task)."""
    if task not in SCENES:
        raise unknown_task("aloha", task, SCENES)
    env_class = AlohaTransferCubeEnv if task == "transfer-cube" else AlohaEnv
    return env_class(task, views, render_size)
