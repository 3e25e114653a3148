"""Finds two cameras with the same frames, also if one is mirrored."""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float64, UInt8

from pipeline.datasets.check.report import Findings

_GRID: Final = 16  # rows and columns of a small copy
# Correlation of small copies. One camera stored twice has 1, minus effects of codecs and resizing;
# views of one scene from two viewpoints stay well below.
_SAME_CORRELATION: Final = 0.998
_MIRRORED: Final[Mapping[str, tuple[slice, slice]]] = {
    "": (slice(None), slice(None)),
    ", mirrored left to right": (slice(None), slice(None, None, -1)),
    ", upside down": (slice(None, None, -1), slice(None)),
    ", turned by 180 degrees": (slice(None, None, -1), slice(None, None, -1)),
}


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


class SameViews:
    """Compares a few frames of each episode between every two views."""

    def __init__(self, view_names: Sequence[str]) -> None:
        """Start with no episode."""
        self._names = view_names
        self._frames: list[tuple[UInt8[np.ndarray, "_ _ 3"], ...]] = []
        self._found: dict[tuple[int, int, str], list[str]] = defaultdict(list)

    def add(self, frames: tuple[UInt8[np.ndarray, "_ _ 3"], ...]) -> None:
        """Add the frames of one step of the current episode, one per view."""
        self._frames.append(frames)

    def end_episode(self, episode: str) -> None:
        """Compare the frames that were added since the last episode.

        A pair is equal in an episode if it is so in all of its steps, mirrored in one way.
        """
        steps, self._frames = self._frames, []
        if not steps:
            return
        copies = [
            {
                how: [small_copy(frames[view][flips]) for frames in steps]
                for how, flips in _MIRRORED.items()
            }
            for view in range(len(self._names))
        ]
        for first, second in itertools.combinations(range(len(self._names)), 2):
            for how in _MIRRORED:
                pairs = zip(copies[first][""], copies[second][how], strict=True)
                if all(_correlation(a, b) > _SAME_CORRELATION for a, b in pairs):
                    self._found[first, second, how].append(episode)
                    break

    def report(self, findings: Findings) -> None:
        """Add a finding per pair of views with the same frames throughout an episode."""
        for (first, second, how), episodes in self._found.items():
            findings.add(
                "error",
                "same_view",
                f"views {self._names[first]} and {self._names[second]}",
                f"the same frames{how} in {len(episodes)} of the episodes that were read, the "
                f"first {episodes[0]}",
                "correct the keys of the views, or leave one view or these episodes out",
            )


def _correlation(first: Float64[np.ndarray, " n"], second: Float64[np.ndarray, " n"]) -> float:
    """Correlate two small copies; 0 if one is of a single color."""
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / scale if scale else 0.0
