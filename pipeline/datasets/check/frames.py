"""What is odd about the frames of one camera: black, of one color, or frozen."""

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from jaxtyping import Float64, UInt8

from pipeline.datasets.check.report import Findings

_BLACK_LEVEL: Final = 16  # of 255; black as video keeps it, and a little noise
_FLAT_LEVELS: Final = 4  # of 255; what a codec makes of one color
_FROZEN_SHARE: Final = 0.1  # of the steps in which the robot moved
_FROZEN_S: Final = 0.5  # seconds
_MIN_FROZEN: Final = 3  # frames; fewer can be chance at a low resolution


@dataclass
class ViewScan:
    """One camera's frames, taken in block by block.

    The robot's way is divided into moves: a move is done when a column of the state is further
    than 1 from where it was at the end of the last one. So motion too slow to be told from noise
    between two steps counts all the same.
    """

    name: str
    fps: float
    num_frames: int = 0
    num_moves: int = 0
    num_unseen: int = 0
    """Moves during which no frame differed from the one before, bit for bit."""
    longest_run: int = 0
    """Most frames one after the other that are all alike, from a first unseen move to a last."""
    longest_at: str = ""
    dead: list[str] = field(default_factory=list)
    """Episodes of one single picture in which the robot moved at all."""
    odd: dict[str, list[str]] = field(default_factory=lambda: {"black": [], "flat": []})
    """Places of frames that show nothing."""
    _last: UInt8[np.ndarray, "h w 3"] | None = None
    _place: Float64[np.ndarray, " s"] | None = None
    """State at the end of the last move."""
    _place_step: int = 0
    _changed: bool = False
    """Whether a frame differed from the one before since then."""
    _run_start: int | None = None
    """Step after which the first of the unseen moves began that nothing has ended yet."""
    _run_moves: int = 0
    _is_one_picture: bool = True

    def begin_episode(self) -> None:
        """Forget the last frame: the next one has none before it."""
        self._last = self._place = self._run_start = None
        self._changed, self._is_one_picture = False, True

    def add(
        self,
        frames: UInt8[np.ndarray, "t h w 3"],
        start: int,
        states: Float64[np.ndarray, "t s"] | None,
        episode: str,
    ) -> None:
        """Take in the frames of steps [start, start + t), in order.

        Args:
            frames: RGB, values in [0, 255].
            start: step of the first frame.
            states: of these steps, in units of the least motion that a camera must show; None
                where the state does not read.
            episode: the episode, for messages.
        """
        for index, frame in enumerate(frames):
            self._look(frame, f"{episode}, step {start + index}")
            if self._last is not None and not np.array_equal(frame, self._last):
                self._changed, self._is_one_picture, self._run_start = True, False, None
            self._last = frame.copy() if index == len(frames) - 1 else frame
            if states is not None:
                self._follow(states[index], start + index, episode)
        self.num_frames += len(frames)

    def end_episode(self, episode: str, *, has_moved: bool) -> None:
        """Note an episode of one single picture.

        Args:
            episode: the episode, for messages.
            has_moved: whether its state changed by more than noise.
        """
        if has_moved and self._is_one_picture:
            self.dead.append(episode)

    def report(self, findings: Findings) -> None:
        """Tell frames that show nothing, and a camera that stood still while the robot moved."""
        for kind, what in (("black", "black"), ("flat", "of one single color")):
            places = self.odd[kind]
            if places:
                findings.add(
                    "error",
                    "black" if kind == "black" else "flat",
                    f"view {self.name}",
                    f"{len(places)} of {self.num_frames} frames are {what}, the first in "
                    f"{places[0]}",
                    "look at the recording; leave these episodes out",
                )
        to_do = "look for a camera that is slower than `fps` or stood still"
        if self.dead:
            findings.add(
                "warning",
                "repeated",
                f"view {self.name}",
                f"all frames are the same picture though the robot moved, in {len(self.dead)} "
                f"of the episodes that were read, the first {self.dead[0]}",
                to_do,
            )
        is_often = self.num_unseen >= max(_MIN_FROZEN, _FROZEN_SHARE * self.num_moves)
        if not self.dead and (self.longest_run or is_often):
            findings.add(
                "warning",
                "repeated",
                f"view {self.name}",
                f"{self.num_unseen} of {self.num_moves} moves of the robot changed no pixel"
                + (
                    f", {self.longest_run} frames in a row up to {self.longest_at}"
                    if self.longest_run
                    else ""
                ),
                to_do,
            )

    def _look(self, frame: UInt8[np.ndarray, "h w 3"], place: str) -> None:
        low, high = frame.min(axis=(0, 1)), frame.max(axis=(0, 1))
        if int(high.max()) <= _BLACK_LEVEL:
            self.odd["black"].append(place)
        elif int((high - low).max()) <= _FLAT_LEVELS:
            self.odd["flat"].append(place)

    def _follow(self, state: Float64[np.ndarray, " s"], step: int, episode: str) -> None:
        """Take in the state of the step whose frame was the last."""
        if self._place is None:
            self._place, self._place_step = state, step
            return
        if not (np.abs(state - self._place) > 1).any():
            return
        self.num_moves += 1
        if not self._changed:
            self.num_unseen += 1
            if self._run_start is None:
                self._run_start, self._run_moves = self._place_step, 0
            self._run_moves += 1
            run = step - self._run_start
            is_long = run >= max(_MIN_FROZEN, math.ceil(_FROZEN_S * self.fps))
            if is_long and self._run_moves >= _MIN_FROZEN and run > self.longest_run:
                self.longest_run, self.longest_at = run, f"{episode}, step {step}"
        self._place, self._place_step, self._changed = state, step, False
