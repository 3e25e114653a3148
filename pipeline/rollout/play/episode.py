"""One environment that plays episodes: render when a decision needs it, act, keep a video.

Views are rendered only at the observation steps that a decision reads, and at every step if a video
is made. A simulator that fails after the policy has moved it ends its episode, unsolved: the
policy's actions led to it. One that fails before is an error of the rollout.
"""

import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from PIL import Image, ImageDraw

from pipeline.errors import EpisodeError
from pipeline.rollout.envs.base import RobotEnv
from pipeline.rollout.play.result import EpisodeResult, episode_file
from pipeline.rollout.play.video import VideoFile
from policy.images import resize_images
from policy.spec import Fit

RED: Final = (230, 20, 20)
WHITE: Final = (255, 255, 255)
LINE_SHARE: Final = 1 / 128  # width of a path's line, relative to the image's width
END_SHARE: Final = 1 / 48  # radius of the circle at its end


@dataclass(frozen=True)
class Observation:
    """What the policy sees at one control step."""

    frames: UInt8[np.ndarray, "v 256 256 3"]
    """Every view, RGB, at the encoder's size."""
    state: Float32[np.ndarray, " s"]


@dataclass(frozen=True)
class Progress:
    """An episode up to its next decision, or to its end."""

    observations: tuple[Observation, ...]
    """The latest observation steps, the current one last; fewer at an episode's start."""
    render_s: float
    """Time spent on rendering them."""
    instruction: str
    result: EpisodeResult | None = None
    """The result; None before the episode ends."""


class EpisodePlayer:
    """Plays episodes in an environment, one after the other."""

    def __init__(
        self,
        env: RobotEnv,
        *,
        obs_horizon: int,
        max_steps: int,
        out: Path,
        fit: Fit = "stretch",
        task: str = "",
        instruction: str = "",
    ):
        """Prepare to play episodes of at most `max_steps` control steps.

        `out` is a rollout's folder; `task` names the environment in a rollout of several.
        """
        self.env = env
        self._out = out
        self._task = task
        self._fit: Fit = fit
        self.max_steps = max_steps
        self._instruction = instruction
        self._observations: deque[Observation] = deque(maxlen=obs_horizon)
        self._video: VideoFile | None = None

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def begin(self, seed: int, video: str) -> Progress:
        """Start an episode; the same seed gives the same one, with or without a video.

        Args:
            seed: of the environment.
            video: `all` keeps it, `failed` deletes that of a solved episode, `none` makes none.

        Raises:
            EpisodeError: the simulator fails before the policy has acted.
        """
        self.env.reset(seed)
        self._seed, self._decisions, self._render_s = seed, 0, 0.0
        self._rewards: list[float] = []
        self._observations.clear()
        self._path = [self.env.effector_pixels()]
        self._video, self._keeps_solved = None, video == "all"
        if video != "none":
            path = self._out / "videos" / episode_file(self._task, seed)
            self._video = VideoFile(path.with_suffix(".mp4"), self.env.control_hz)
        images = self._look(is_needed=True)
        assert images is not None
        self._first_image = images[0]
        return self._progress()

    def act(self, chunk: Float32[np.ndarray, "n a"]) -> Progress:
        """Execute actions, and render what the next decision will need."""
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
            outcome = self.env.step(action)
            self._rewards.append(outcome.reward)
            self._path.append(self.env.effector_pixels())
            if outcome.success or outcome.truncated or len(self._rewards) >= self.max_steps:
                return self._progress(self._end(success=outcome.success))
        self._look(is_needed=True)
        return self._progress()

    def _look(self, *, is_needed: bool) -> UInt8[np.ndarray, "v h w 3"] | None:
        """Render if a decision or the video needs it; only the former's time counts."""
        if not is_needed and self._video is None:
            return None
        started = time.perf_counter()
        images = self.env.render()
        if is_needed:
            frames = resize_images(images, self._fit)
            self._observations.append(Observation(frames, self.env.state()))
            self._render_s += time.perf_counter() - started
        if self._video is not None:
            self._video.add(images)
        return images

    def _progress(self, result: EpisodeResult | None = None) -> Progress:
        return Progress(tuple(self._observations), self._render_s, self._instruction, result)

    def _end(self, *, success: bool, failure: str | None = None) -> EpisodeResult:
        if self._video is not None:
            with suppress(EpisodeError):  # a video changes no result
                if failure is None:
                    self._video.add(self.env.render())
            self._video.close(keep=self._keeps_solved or not success)
        path = self._out / "paths" / episode_file(self._task, self._seed)
        write_path_image(path.with_suffix(".png"), self._first_image, np.stack(self._path)[:, 0])
        return EpisodeResult(
            task=self._task,
            seed=self._seed,
            success=success,
            steps=len(self._rewards),
            reward=sum(self._rewards),
            max_reward=max(self._rewards, default=0.0),
            decisions=self._decisions,
            failure=failure,
            instruction=self._instruction,
        )


def write_path_image(
    path: Path, image: UInt8[np.ndarray, "h w 3"], points: Float64[np.ndarray, "n 2"]
) -> None:
    """Draw an end-effector's path on an image, in red, as PNG; nothing if no point is known.

    Args:
        path: of the PNG; its folder is made.
        image: RGB.
        points: column and row in pixels, in order; NaN where unknown, which leaves a gap.
    """
    known = np.isfinite(points).all(axis=1)
    if not known.any():
        return
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    width = max(1, round(canvas.width * LINE_SHARE))
    for color, extra in ((WHITE, 2), (RED, 0)):  # a white rim: some robots are red
        for ends in zip(points[:-1].tolist(), points[1:].tolist(), strict=True):
            if np.isfinite(ends).all():
                draw.line([*map(tuple, ends)], fill=color, width=width + extra)
    column, row = points[known][-1]
    radius = canvas.width * END_SHARE
    draw.ellipse((column - radius, row - radius, column + radius, row + radius), outline=RED)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)
