"""Findings about frames: black or of one color, a camera that froze, two views of one camera."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from pipeline.datasets.check.report import Findings
from policy.images import resize_images
from policy.network.normalizer import CONSTANT_RANGE
from policy.spec import FRAME_SIZE

_BLACK_LEVEL: Final = 16  # of 255; black of videos, and a little noise
_FLAT_LEVELS: Final = 4  # of 255; the range of one color after a codec
_FROZEN_SHARE: Final = 0.1  # of the steps in which the robot moved
_FROZEN_S: Final = 0.5  # seconds
_MIN_FROZEN: Final = 3  # frames; fewer can be chance at a low resolution
_GRID: Final = 16  # rows and columns of a small copy
# Correlation of small copies. One camera stored twice has 1, minus effects of codecs and resizing;
# views of one scene from two viewpoints stay well below.
_SAME_CORRELATION: Final = 0.998
_MIRRORED: Final[Mapping[str, tuple[int, ...]]] = {  # axes of small copies that are reversed
    "": (),
    ", mirrored left to right": (2,),
    ", upside down": (1,),
    ", turned by 180 degrees": (1, 2),
}

Frame = UInt8[np.ndarray, "_ _ 3"]
"""RGB [h, w, 3], values in [0, 255]."""


class ViewScan:
    """One camera's frames, added block by block, and whether they change as the robot moves."""

    def __init__(self, name: str, fps: float, least: Float64[np.ndarray, " s"]) -> None:
        """Start with no episode; `least` is the motion per column that a camera must show."""
        self.name, self._fps, self._least = name, fps, least
        self.sizes: set[tuple[int, int]] = set()
        self.max_drift_s = 0.0
        self.num_frames = 0
        self._nothing: dict[str, list[str]] = {"black": [], "flat": []}
        self._dead: list[str] = []  # episodes of equal frames in which the robot moved
        self._num_moves = self._num_unseen = 0
        self._longest = (0, "")  # consecutive equal frames during unseen moves, and their end
        self.begin_episode()

    def begin_episode(self) -> None:
        """Forget the last frame: the next one has none before it."""
        self._last: Frame | None = None
        self._changed: list[bool] = []  # of each frame, whether it differs from the one before

    def add(self, frames: UInt8[np.ndarray, "t h w 3"], episode: str) -> None:
        """Add the next frames of an episode, in order; `episode` names it in messages."""
        for frame in frames:
            low, high = frame.min(axis=(0, 1)), frame.max(axis=(0, 1))
            place = f"{episode}, step {len(self._changed)}"
            if int(high.max()) <= _BLACK_LEVEL:
                self._nothing["black"].append(place)
            elif int((high - low).max()) <= _FLAT_LEVELS:
                self._nothing["flat"].append(place)
            self._changed.append(self._last is not None and not np.array_equal(frame, self._last))
            self._last = frame
        self._last = frames[-1].copy()  # does not keep the block in memory
        self.num_frames += len(frames)

    def end_episode(self, states: Float32[np.ndarray, "t s"], episode: str) -> None:
        """Compare the frames of the episode with the robot's motion.

        A move ends when a column differs by more than `least` from its value at the end of the last
        move. So slow motion counts too, which could be noise between two steps.
        """
        changed, states = np.array(self._changed), states.astype(np.float64)
        if not changed.any() and (np.ptp(states, axis=0) > CONSTANT_RANGE).any():
            self._dead.append(episode)
        moved = run_start = run_moves = 0
        for step in range(1, len(states)):
            if not (np.abs(states[step] - states[moved]) > self._least).any():
                continue
            self._num_moves += 1
            if changed[moved + 1 : step + 1].any():
                run_start, run_moves = step, 0
            else:
                self._num_unseen += 1
                run_moves += 1
                run = step - run_start
                is_long = run >= max(_MIN_FROZEN, math.ceil(_FROZEN_S * self._fps))
                if is_long and run_moves >= _MIN_FROZEN and run > self._longest[0]:
                    self._longest = run, f"{episode}, step {step}"
            moved = step

    def report(self, findings: Findings) -> None:
        """Add findings about frames that show nothing, and about a camera that froze."""
        view = f"view {self.name}"
        for kind, places in self._nothing.items():
            if places:
                found = f"{len(places)} of {self.num_frames} frames are {kind}, the first in "
                to_do = "look at the recording; leave these episodes out"
                findings.add("error", kind, view, found + places[0], to_do)
        to_do = "look for a camera that is slower than `fps` or froze"
        run, end = self._longest
        if num := len(self._dead):
            found = f"all frames are equal though the robot moved, in {num} of the episodes"
            findings.add("warning", "repeated", view, f"{found}, first {self._dead[0]}", to_do)
        elif run or self._num_unseen >= max(_MIN_FROZEN, _FROZEN_SHARE * self._num_moves):
            found = f"{self._num_unseen} of {self._num_moves} moves of the robot changed no pixel"
            found += f", {run} frames in a row up to {end}" if run else ""
            findings.add("warning", "repeated", view, found, to_do)


def same_views(steps: Sequence[tuple[Frame, ...]]) -> Iterator[tuple[int, int, str]]:
    """Find pairs of views with the same frames, also if one is mirrored.

    Args:
        steps: of one episode, each a frame per view; a pair is equal if it is so in all of them,
            mirrored in one way.

    Yields:
        The positions of both views, and how the second is mirrored, in words.
    """
    copies = [_small_copies(np.stack(frames)) for frames in zip(*steps, strict=True)]
    for first, second in itertools.combinations(range(len(copies)), 2):
        for how, axes in _MIRRORED.items():
            correlations = (copies[first] * np.flip(copies[second], axes)).sum(axis=(1, 2, 3))
            if (correlations > _SAME_CORRELATION).all():
                yield first, second, how
                break


def _small_copies(frames: UInt8[np.ndarray, "n h w 3"]) -> Float64[np.ndarray, "n g g 3"]:
    """Average frames over a grid; without their mean, of norm 1 (0 if of a single color)."""
    side = FRAME_SIZE[0] // _GRID
    cells = resize_images(frames).reshape(len(frames), _GRID, side, _GRID, side, 3)
    copies = cells.mean(axis=(2, 4))
    copies -= copies.mean(axis=(1, 2, 3), keepdims=True)
    norms = np.linalg.norm(copies.reshape(len(frames), -1), axis=1)
    return np.asarray(copies / np.where(norms, norms, 1)[:, None, None, None])
