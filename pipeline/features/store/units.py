"""How a store's rows are cut into units of work: one file of the features array each.

A unit is written whole by one writer, and a killed job resumes at the unit it was in. Units end at
the borders of files and not of episodes, because two writers in one file would overwrite each
other. A unit is a chunk of 256 rows; in a large store it is a shard of 64 such chunks, so that 10
million rows are 611 files per array and not 39,063.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int64

CHUNK_ROWS: Final = 256  # control steps; a chunk of three 1,536-byte views is 1.18 MB
SHARD_ROWS: Final = 64 * CHUNK_ROWS  # control steps at most; 75.5 MB of three 1,536-byte views
SHARD_BYTES: Final = 80 * 10**6  # a shard of larger features has fewer rows
PASSING_ROWS: Final = CHUNK_ROWS  # control steps of a shard in memory while it is only checked
SHARD_ABOVE: Final = 1_000_000  # control steps of a dataset; DROID has 18.9 million


@dataclass(frozen=True)
class EpisodeSlice:
    """Consecutive steps of one episode."""

    episode: int
    start: int
    """First step."""
    stop: int
    """One past the last step."""


def choose_rows_per_unit(num_rows: int, shard_above: int, bytes_per_row: int) -> int:
    """Return the size of a new store's units: a shard above `shard_above` rows, else a chunk."""
    if num_rows <= shard_above:
        return CHUNK_ROWS
    rows = SHARD_BYTES // (CHUNK_ROWS * bytes_per_row) * CHUNK_ROWS
    return min(max(rows, CHUNK_ROWS), SHARD_ROWS)


def cut(start: int, stop: int, size: int) -> Iterator[slice]:
    """Cut the rows [start, stop) into slices of `size`; the last one may be short."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def episode_slices(
    episode_ends: Int64[np.ndarray, " e"], start: int, stop: int
) -> Iterator[EpisodeSlice]:
    """Cut the rows [start, stop) at `episode_ends`, the row after each episode's last."""
    row = start
    while row < stop:
        episode = int(np.searchsorted(episode_ends, row, side="right"))
        first_row = int(episode_ends[episode - 1]) if episode else 0
        end = min(stop, int(episode_ends[episode]))
        yield EpisodeSlice(episode, row - first_row, end - first_row)
        row = end
