"""Findings about the frames of one camera: black, of one color, or frozen."""

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from jaxtyping import Float64, UInt8

from pipeline.datasets.check.report import Findings

_BLACK_LEVEL: Final = 16  # of 255; black of videos, and a little noise
_FLAT_LEVELS: Final = 4  # of 255; the range of one color after a codec
_FROZEN_SHARE: Final = 0.1  # of the steps in which the robot moved
_FROZEN_S: Final = 0.5  # seconds
_MIN_FROZEN: Final = 3  # frames; fewer can be chance at a low resolution


@dataclass
class ViewScan:
    """One camera's frames, added block by block.

    The robot's motion is divided into moves: a move ends when a column of the state differs by more
    than 1 from its value at the end of the last move. So slow motion counts too, which could be
    noise between two steps.
    """

    name: str
    fps: float
    num_frames: int = 0
    num_moves: int = 0
    num_unseen: int = 0
    """Moves during which no frame differed from the one before, bit for bit."""
    longest_run: int = 0
    """Most consecutive equal frames, from a first unseen move to a last."""
    longest_at: str = ""
    dead: list[str] = field(default_factory=list)
    """Episodes of equal frames in which the robot moved."""
    odd: dict[str, list[str]] = field(default_factory=lambda: {"black": [], "flat": []})
    """Episode and step of frames that show nothing."""
    _last: UInt8[np.ndarray, "h w 3"] | None = None
    _moved_state: Float64[np.ndarray, " s"] | None = None
    """State at the end of the last move."""
    _moved_step: int = 0
    _changed: bool = False
    """Whether a frame differed from the one before since then."""
    _run_start: int | None = None
    """Step at which the current run of unseen moves began."""
    _run_moves: int = 0
    _is_one_frame: bool = True

    def begin_episode(self) -> None:
        """Forget the last frame: the next one has none before it."""
        self._last = self._moved_state = self._run_start = None
        self._changed, self._is_one_frame = False, True

    def add(
        self,
        frames: UInt8[np.ndarray, "t h w 3"],
        start: int,
        states: Float64[np.ndarray, "t s"] | None,
        episode: str,
    ) -> None:
        """Add the frames of steps [start, start + t), in order.

        Args:
            frames: RGB, values in [0, 255].
            start: step of the first frame.
            states: of these steps, in units of the least motion that a camera must show; None
                if the state does not read.
            episode: the episode, for messages.
        """
        for index, frame in enumerate(frames):
            self._look(frame, f"{episode}, step {start + index}")
            if self._last is not None and not np.array_equal(frame, self._last):
                self._changed, self._is_one_frame, self._run_start = True, False, None
            self._last = frame.copy() if index == len(frames) - 1 else frame
            if states is not None:
                self._follow(states[index], start + index, episode)
        self.num_frames += len(frames)

    def end_episode(self, episode: str, *, has_moved: bool) -> None:
        """Note an episode of equal frames; `has_moved`: its state changed by more than noise."""
        if has_moved and self._is_one_frame:
            self.dead.append(episode)

    def report(self, findings: Findings) -> None:
        """Add findings about frames that show nothing, and about a camera that froze."""
        for kind, what in (("black", "black"), ("flat", "of one single color")):
            places = self.odd[kind]
            if places:
                findings.add(
                    "error",
                    kind,
                    f"view {self.name}",
                    f"{len(places)} of {self.num_frames} frames are {what}, the first in "
                    f"{places[0]}",
                    "look at the recording; leave these episodes out",
                )
        to_do = "look for a camera that is slower than `fps` or froze"
        if self.dead:
            findings.add(
                "warning",
                "repeated",
                f"view {self.name}",
                f"all frames are equal though the robot moved, in {len(self.dead)} "
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
        """Add the state of the last frame's step."""
        if self._moved_state is None:
            self._moved_state, self._moved_step = state, step
            return
        if not (np.abs(state - self._moved_state) > 1).any():
            return
        self.num_moves += 1
        if not self._changed:
            self.num_unseen += 1
            if self._run_start is None:
                self._run_start, self._run_moves = self._moved_step, 0
            self._run_moves += 1
            run = step - self._run_start
            is_long = run >= max(_MIN_FROZEN, math.ceil(_FROZEN_S * self.fps))
            if is_long and self._run_moves >= _MIN_FROZEN and run > self.longest_run:
                self.longest_run, self.longest_at = run, f"{episode}, step {step}"
        self._moved_state, self._moved_step, self._changed = state, step, False
