"""A small real Gymnasium environment: a dot that is steered to a target, seen by two cameras."""

from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

ID = "FrozenVlaTests/ReachDot-v0"
SIZE = 60  # pixels


class ReachDotEnv(gymnasium.Env):
    """Two square pictures of different sizes in the observation, and one by render()."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None, speed=0.1, limit=1.0):
        self.render_mode = render_mode
        self.speed = speed
        self.is_open = True
        self.received = []
        self.action_space = Box(-limit, limit, (2,), np.float32)
        picture = {"front": Box(0, 255, (SIZE, SIZE, 3), np.uint8)}
        picture["top"] = Box(0, 255, (2 * SIZE, SIZE, 3), np.uint8)
        numbers = {
            "agent_pos": Box(-1, 1, (2,)),
            "speed": Box(0, 1, (1,)),
            "target": Box(-1, 1, (2,)),
        }
        self.observation_space = Dict({"pixels": Dict(picture), **numbers})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.dot = np.zeros(2)
        self.target = self.np_random.uniform(-0.9, 0.9, 2)
        return self._observe(), {}

    def step(self, action):
        assert self.is_open
        self.received.append(action)
        self.dot = self.dot + self.speed * action
        distance = np.linalg.norm(self.dot - self.target)
        is_lost = bool(np.abs(self.dot).max() > 3)
        info = {"task": {"is_success": distance < 0.1}}
        return self._observe(), -distance, is_lost, False, info

    def render(self):
        return self._draw(SIZE, SIZE, 200)

    def close(self):
        self.is_open = False

    def _observe(self):
        return {
            "pixels": {"front": self._draw(SIZE, SIZE, 20), "top": self._draw(2 * SIZE, SIZE, 90)},
            "agent_pos": self.dot,
            "speed": np.array([self.speed]),
            "target": self.target,
        }

    def _draw(self, height, width, gray):
        """A red target and a green dot; x to the right, y up."""
        picture = np.full((height, width, 3), gray, np.uint8)
        for (x, y), channel in ((self.target, 0), (self.dot, 1)):
            column = int(np.clip((x + 1) / 2 * width, 4, width - 4))
            row = int(np.clip((1 - y) / 2 * height, 4, height - 4))
            picture[row - 4 : row + 4, column - 4 : column + 4] = 0
            picture[row - 4 : row + 4, column - 4 : column + 4, channel] = 255
        return picture


gymnasium.register(ID, ReachDotEnv)
