"""A disc on a table that has two equally good ways around a wall; owns its MuJoCo scene.

The expert takes the left way and the right one by turns, whatever it sees, and the wall is near:
the mean of its first actions leads into it. So a policy that averages fails, one that draws from
the distribution does not. An episode is solved at the goal, unless the disc has touched the wall.
"""

from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64

from pipeline.rollout.envs.base import StepResult
from pipeline.rollout.envs.guard import unknown_task
from pipeline.rollout.envs.rendering import MujocoEnv
from pipeline.versions import versions

# isort: split
# This imports mujoco too, which `rendering` must be the first to do.
import mujoco

TASK: Final = "two-ways"
SUBSTEPS: Final = 10  # of 5 ms
SPEED: Final = 0.6  # m/s at action 1: 0.03 m per control step
MAX_STEPS: Final = 60  # the expert needs 15 to 21
REACHED_M: Final = 0.03
PASS_M: Final = 0.2  # from the middle of the wall to the way around it; 0.11 would touch

SCENE: Final = """
<mujoco>
  <option timestep="0.005"/>
  <visual><headlight ambient="0.5 0.5 0.5" diffuse="0.5 0.5 0.5" specular="0 0 0"/></visual>
  <default><geom rgba="0.55 0.55 0.6 1" condim="1"/></default>
  <worldbody>
    <camera name="top" pos="0 0 1.1" fovy="45"/>
    <camera name="front" pos="0 -0.8 0.4" xyaxes="1 0 0 0 0.45 0.89" fovy="45"/>
    <camera name="side" pos="0.6 0 0.8" xyaxes="0 1 0 -0.8 0 0.6" fovy="45"/>
    <geom name="table" type="plane" size="0.5 0.5 0.1" contype="0" conaffinity="0"/>
    <geom type="cylinder" pos="-0.3 -0.3 0" size="0.08 0.005" rgba="0.85 0.75 0.3 1" contype="0"
      conaffinity="0"/>
    <geom name="wall" type="box" pos="0 0 0.04" size="0.08 0.015 0.04" rgba="0.75 0.3 0.2 1"/>
    <body name="goal" mocap="true">
      <geom type="cylinder" size="0.03 0.002" rgba="0.2 0.7 0.3 1" contype="0" conaffinity="0"/>
    </body>
    <body name="disc" pos="0 0 0.025">
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <geom name="disc" type="cylinder" size="0.03 0.02" mass="0.2" rgba="0.15 0.3 0.8 1"/>
    </body>
  </worldbody>
  <actuator>
    <velocity joint="x" kv="10"/>
    <velocity joint="y" kv="10"/>
  </actuator>
</mujoco>
"""


class TwoWaysEnv(MujocoEnv):
    """The task; implements `ExpertEnv`. Cameras: top, front, side."""

    source: str = "scripted expert of frozen-vla (planar.py), recorded with vla-data record"
    license: str = "CC0-1.0"
    """Scene and expert are this project's own; a recording is the simulator's output."""
    state_units: str = "position x y of the disc in meters"
    action_units: str = "velocity x y of the disc, 1 = 0.6 m/s"

    def __init__(self, task: str, views: tuple[str, ...], render_size: int) -> None:
        """Load the scene (EnvError: the task is not `two-ways`, or as for `MujocoEnv`)."""
        if task != TASK:
            raise unknown_task("planar", task, [TASK])
        model: Any = mujoco.MjModel.from_xml_string(SCENE)
        data: Any = mujoco.MjData(model)
        super().__init__(f"planar/{task}", views, model, data, render_size)
        self.revision = ", ".join(versions("mujoco"))
        self.instruction = "go around the wall to the green goal"
        self.state_dim = self.action_dim = 2
        self.control_hz: float = 1 / (SUBSTEPS * model.opt.timestep)
        self.max_steps = MAX_STEPS

    def reset(self, seed: int) -> None:
        mujoco.mj_resetData(self._model, self._data)
        chance = np.random.default_rng(seed)
        self._data.qpos[:] = chance.uniform((-0.05, -0.18), (0.05, -0.15))
        self._goal = chance.uniform((-0.05, 0.15), (0.05, 0.25))
        self._data.mocap_pos[0] = *self._goal, 0.002
        mujoco.mj_forward(self._model, self._data)
        self._steps, self._has_touched = 0, False
        self._passing = np.array([PASS_M if seed % 2 else -PASS_M, 0.0])  # the expert's

    def effector(self) -> Float64[np.ndarray, " 3"]:
        return np.asarray(self._data.body("disc").xpos)

    def state(self) -> Float32[np.ndarray, " 2"]:
        return np.asarray(self._data.qpos, np.float32)

    def step(self, action: Float32[np.ndarray, " 2"]) -> StepResult:
        """Apply one velocity, clipped to [-1, 1], and advance 0.05 s."""
        self._data.ctrl[:] = SPEED * np.clip(action, -1.0, 1.0)
        for _ in range(SUBSTEPS):
            mujoco.mj_step(self._model, self._data)
            self._has_touched |= self._data.ncon > 0
        self._steps += 1
        distance = float(np.linalg.norm(self._data.qpos - self._goal))
        is_solved = distance < REACHED_M and not self._has_touched
        return StepResult(-distance, is_solved, self._steps == MAX_STEPS)

    def expert_action(self) -> Float32[np.ndarray, " 2"]:
        """Return the velocity towards the end of the wall, and beyond it towards the goal."""
        here = self._data.qpos
        has_passed = here[1] > -0.01  # meters; the middle of the wall is at 0
        way = (self._goal if has_passed else self._passing) - here
        distance = float(np.linalg.norm(way))
        speed = min(1.0, distance / 0.06) if has_passed else 1.0
        return np.asarray(speed * way / max(distance, 1e-6), np.float32)
