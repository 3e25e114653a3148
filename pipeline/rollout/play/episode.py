"""One environment that plays episodes: it looks when a decision needs it, acts, keeps a film.

Views are rendered only at the observation steps that a decision reads, and at every step where a
film is wanted. A simulator that fails after the policy has moved it ends its episode, unsolved: it
is what the policy's actions led to. One that fails before says nothing about the policy, so that is
an error of the rollout.
"""

import math
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from pipeline.errors import EpisodeError
from pipeline.rollout.envs.base import RobotEnv
from pipeline.rollout.play.path_image import write_path_image
from pipeline.rollout.play.result import EpisodeResult
from pipeline.rollout.play.video import VideoFile
from policy.images import resize_images
from policy.spec import Fit


@dataclass(frozen=True)
class Observation:
    """What one control step showed."""

    frames: UInt8[np.ndarray, "v 256 256 3"]
    """Every view, RGB, brought to the encoder's size."""
    state: Float32[np.ndarray, " s"]
    """What the robot knows of itself."""


@dataclass(frozen=True)
class Progress:
    """An episode up to its next decision, or to its end."""

    observations: tuple[Observation, ...]
    """The latest observation steps, the current one last; fewer where the episode is younger."""
    render_s: float
    """Time spent on rendering them."""
    result: EpisodeResult | None = None
    """How it ended; None while it goes on."""


class EpisodePlayer:
    """Plays episodes in an environment, one after the other."""

    def __init__(
        self,
        env: RobotEnv,
        *,
        obs_horizon: int,
        max_steps: int,
        out: Path | None,
        fit: Fit = "stretch",
    ):
        """Prepare.

        Args:
            env: is left open at the end.
            obs_horizon: observation steps of a decision.
            max_steps: control steps until an episode counts as failed.
            out: folder of a rollout, for its videos and its pictures of paths; None keeps none.
            fit: how pictures that are not square become so.
        """
        self._env = env
        self._out = out
        self._fit: Fit = fit
        self._max_steps = max_steps
        self._observations: deque[Observation] = deque(maxlen=obs_horizon)
        self._film: VideoFile | None = None
        self._keeps_solved = True

    def begin(self, seed: int, film: str) -> Progress:
        """Start an episode; the same seed gives the same one, filmed or not.

        Args:
            seed: of the environment.
            film: `all` keeps the film, `failed` if the episode is not solved, `none` makes none.

        Raises:
            EpisodeError: the simulator fails before the policy has acted.
        """
        self._env.reset(seed)
        self._seed, self._steps, self._decisions, self._reward = seed, 0, 0, 0.0
        self._max_reward = -math.inf
        self._render_s = 0.0
        self._observations.clear()
        self._path = [self._env.effector_pixels()]
        self._film, self._keeps_solved = None, film == "all"
        if self._out is not None and film != "none":
            path = self._out / "videos" / f"seed_{seed}.mp4"
            self._film = VideoFile(path, self._env.control_hz)
        pictures = self._look(is_needed=True)
        assert pictures is not None
        self._first_picture = pictures[0]
        return self._progress()

    def act(self, chunk: Float32[np.ndarray, "n a"]) -> Progress:
        """Execute actions, and look at what the next decision will need."""
        self._decisions += 1
        self._render_s = 0.0
        try:
            return self._execute(chunk)
        except EpisodeError as error:
            return self._progress(self._end(success=False, failure=" ".join(str(error).split())))

    def _execute(self, chunk: Float32[np.ndarray, "n a"]) -> Progress:
        first_seen = max(0, len(chunk) - (self._observations.maxlen or 0))
        for index, action in enumerate(chunk):
            if index > 0:  # the chunk's first step was seen by its decision
                self._look(is_needed=index > first_seen)
            outcome = self._env.step(action)
            self._steps += 1
            self._reward += outcome.reward
            self._max_reward = max(self._max_reward, outcome.reward)
            self._path.append(self._env.effector_pixels())
            if outcome.success or outcome.truncated or self._steps >= self._max_steps:
                return self._progress(self._end(success=outcome.success))
        self._look(is_needed=True)
        return self._progress()

    def _look(self, *, is_needed: bool) -> UInt8[np.ndarray, "v h w 3"] | None:
        """Render if a decision or the film needs it; only the former's time counts."""
        if not is_needed and self._film is None:
            return None
        started = time.perf_counter()
        pictures = self._env.render()
        if is_needed:
            frames = resize_images(pictures, self._fit)
            self._observations.append(Observation(frames, self._env.state()))
            self._render_s += time.perf_counter() - started
        if self._film is not None:
            self._film.add(pictures)
        return pictures

    def _progress(self, result: EpisodeResult | None = None) -> Progress:
        return Progress(tuple(self._observations), self._render_s, result)

    def _end(self, *, success: bool, failure: str | None = None) -> EpisodeResult:
        if self._film is not None:
            with suppress(EpisodeError):  # a film changes no result
                if failure is None:
                    self._film.add(self._env.render())
            self._film.close(keep=self._keeps_solved or not success)
        if self._out is not None:
            place = self._out / "paths" / f"seed_{self._seed}.png"
            write_path_image(place, self._first_picture, np.stack(self._path)[:, 0])
        return EpisodeResult(
            seed=self._seed,
            success=success,
            steps=self._steps,
            reward=self._reward,
            max_reward=self._max_reward if self._steps else 0.0,
            decisions=self._decisions,
            failure=failure,
        )
