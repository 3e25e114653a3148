"""A small Gymnasium environment that fails where it is told to, as other people's simulators do."""

import time

import gymnasium
import numpy as np

from tests.pipeline.rollout.toy_env import ReachDotEnv

ID = "FrozenVlaTests/FaultyDot-v0"
GOOD_RESETS = 1  # the adapter's own, when it is built


class FaultyDotEnv(ReachDotEnv):
    """Fails at a step of some episodes, at every reset, or is slow."""

    def __init__(
        self, render_mode=None, *, fault="none", at=3, seeds=(), step_s=0.0, speed=0.1, limit=1.0
    ):
        super().__init__(render_mode, speed, limit)
        self.fault = fault
        self.at = at
        self.seeds = seeds
        self.step_s = step_s
        self.num_resets = 0

    def reset(self, *, seed=None, options=None):
        self.num_resets += 1
        if self.fault == "reset" and self.num_resets > GOOD_RESETS:
            raise OSError("no such robot")
        self.seed, self.num_steps = seed, 0
        return super().reset(seed=seed)

    @property
    def is_failing(self):
        return self.num_steps == self.at and (not self.seeds or self.seed in self.seeds)

    def step(self, action):
        time.sleep(self.step_s)
        observation, reward, is_lost, is_late, info = super().step(action)
        self.num_steps += 1
        if self.is_failing and self.fault == "raise":
            raise FloatingPointError("the solver\ndiverged")
        if self.is_failing and self.fault == "nan":
            observation["agent_pos"] = np.full(2, np.nan)
        if self.is_failing and self.fault == "reward":
            reward = np.inf
        return observation, reward, is_lost, is_late, info

    def render(self):
        if self.fault == "render" and self.is_failing:
            raise RuntimeError("OpenGL context lost")
        return super().render()


gymnasium.register(ID, FaultyDotEnv)
