"""How a store's rows are cut into units of work: one chunk of the features array each.

Knows row numbers; nothing about encoders or files. A unit is written by one writer, whole, and a
killed job resumes at the unit it was in. Units are cut at chunk borders and not at episode ends,
because two writers in one chunk would overwrite each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int64

UNIT_ROWS: Final = 256  # control steps; a chunk of three views is 1.18 MB


@dataclass(frozen=True)
class EpisodeSlice:
    """Consecutive steps of one episode."""

    episode: int
    start: int
    """First step."""
    stop: int
    """One past the last step."""


def num_units(num_rows: int) -> int:
    """Return how many units hold `num_rows` rows; the last one may be short."""
    return -(-num_rows // UNIT_ROWS)


def unit_rows(unit: int, num_rows: int) -> tuple[int, int]:
    """Return the rows [start, stop) of a unit."""
    return unit * UNIT_ROWS, min((unit + 1) * UNIT_ROWS, num_rows)


def episode_slices(
    episode_ends: Int64[np.ndarray, " e"], start: int, stop: int
) -> Iterator[EpisodeSlice]:
    """Cut the rows [start, stop) at episode ends, in order.

    Args:
        episode_ends: row after each episode's last, strictly increasing.
        start: first row.
        stop: one past the last row, at most `episode_ends[-1]`.
    """
    row = start
    while row < stop:
        episode = int(np.searchsorted(episode_ends, row, side="right"))
        first_row = int(episode_ends[episode - 1]) if episode else 0
        end = min(stop, int(episode_ends[episode]))
        yield EpisodeSlice(episode, row - first_row, end - first_row)
        row = end
