"""What is odd about camera frames: black, of one colour, frozen, or two cameras showing the same.

Knows pixels; keeps a few numbers and small copies. Opens no dataset.
"""

import itertools
import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from pipeline.datasets.check_report import Findings

_BLACK_LEVEL: Final = 16  # of 255; black as video keeps it, and a little noise
_FLAT_LEVELS: Final = 4  # of 255; what a codec makes of one colour
_FROZEN_SHARE: Final = 0.1  # of the steps in which the robot moved
_FROZEN_S: Final = 0.5  # seconds
_MIN_FROZEN: Final = 3  # frames; fewer can be chance at a low resolution
_GRID: Final = 16  # rows and columns of a small copy
# Correlation of small copies. One camera stored twice has 1 but for what codecs and resizing do;
# views of one scene from two places stay well below.
_SAME_CORRELATION: Final = 0.998


def small_copy(frame: UInt8[np.ndarray, "h w 3"]) -> Float64[np.ndarray, " n"]:
    """Average a frame over a 16x16 grid, flattened, without its mean."""
    sums = frame.astype(np.float64)
    for axis in (0, 1):
        length = frame.shape[axis]
        starts = np.arange(_GRID) * length // _GRID
        counts = np.maximum(np.diff(starts, append=length), 1)
        shape = [-1 if a == axis else 1 for a in range(3)]
        sums = np.add.reduceat(sums, starts, axis=axis) / counts.reshape(shape)
    return np.asarray((sums - sums.mean()).ravel())


@dataclass
class ViewScan:
    """One camera's frames, taken in block by block."""

    name: str
    fps: float
    num_frames: int = 0
    num_moved: int = 0
    """Steps in which the robot moved since the step before."""
    num_frozen: int = 0
    """Those of them whose frame is bit for bit the one before."""
    longest_run: int = 0
    """Most frozen frames one after the other."""
    longest_at: str = ""
    odd: dict[str, list[str]] = field(default_factory=lambda: {"black": [], "flat": []})
    """Places of frames that show nothing."""
    copies: list[Float64[np.ndarray, " n"]] = field(default_factory=list)
    """Small copies of a few frames, the same steps in every view."""
    _last: UInt8[np.ndarray, "h w 3"] | None = None
    _run: int = 0

    def begin_episode(self) -> None:
        """Forget the last frame: the next one has none before it."""
        self._last, self._run = None, 0

    def add(
        self,
        frames: UInt8[np.ndarray, "t h w 3"],
        start: int,
        moved: Bool[np.ndarray, " t"],
        episode: str,
    ) -> None:
        """Take in the frames of steps [start, start + t), in order.

        Args:
            frames: RGB, values in [0, 255].
            start: step of the first frame.
            moved: whether the robot moved between the step before and each of these.
            episode: the episode, for messages.
        """
        for step, (frame, has_moved) in enumerate(zip(frames, moved, strict=True), start):
            low, high = frame.min(axis=(0, 1)), frame.max(axis=(0, 1))
            place = f"{episode}, step {step}"
            if int(high.max()) <= _BLACK_LEVEL:
                self.odd["black"].append(place)
            elif int((high - low).max()) <= _FLAT_LEVELS:
                self.odd["flat"].append(place)
            self.num_moved += bool(has_moved)
            if self._last is None or not np.array_equal(frame, self._last):
                self._run = 0
            elif has_moved:
                self.num_frozen += 1
                self._run += 1
                if self._run > self.longest_run:
                    self.longest_run, self.longest_at = self._run, place
            self._last = frame
        self.num_frames += len(frames)

    def report(self, findings: Findings) -> None:
        """Tell frames that show nothing, and a camera that stood still while the robot moved."""
        for kind, what in (("black", "black"), ("flat", "of one single colour")):
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
        is_long = self.longest_run >= max(_MIN_FROZEN, math.ceil(_FROZEN_S * self.fps))
        is_often = self.num_frozen >= max(_MIN_FROZEN, _FROZEN_SHARE * self.num_moved)
        if is_long or is_often:
            findings.add(
                "warning",
                "repeated",
                f"view {self.name}",
                f"{self.num_frozen} of {self.num_moved} frames repeat the one before though the "
                f"robot moved, {self.longest_run} in a row up to {self.longest_at}",
                "look for a camera that is slower than `fps` or stood still",
            )


def report_same_views(scans: list[ViewScan], findings: Findings) -> None:
    """Tell pairs of views that show the same picture in all compared steps, of any size."""
    for first, second in itertools.combinations(scans, 2):
        pairs = list(zip(first.copies, second.copies, strict=True))
        if pairs and all(_correlation(a, b) > _SAME_CORRELATION for a, b in pairs):
            findings.add(
                "error",
                "same_view",
                f"views {first.name} and {second.name}",
                f"the same picture in all {len(pairs)} frames that were compared",
                "correct the keys of the views, or leave one out",
            )


def _correlation(first: Float64[np.ndarray, " n"], second: Float64[np.ndarray, " n"]) -> float:
    """Correlate two small copies; 0 where one shows nothing."""
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / scale if scale else 0.0
