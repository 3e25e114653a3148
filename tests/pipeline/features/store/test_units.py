"""Units of work: chunk-aligned, disjoint, complete."""

import numpy as np
import pytest

from pipeline.features.store.units import (
    CHUNK_ROWS,
    EpisodeSlice,
    episode_slices,
    num_units,
    unit_rows,
)


@pytest.mark.parametrize("num_rows", [1, 255, 256, 257, 1000])
@pytest.mark.parametrize("size", [CHUNK_ROWS, 3 * CHUNK_ROWS])
def test_units_cover_every_row_once_and_begin_at_their_own_borders(num_rows, size):
    bounds = [unit_rows(unit, num_rows, size) for unit in range(num_units(num_rows, size))]
    rows = [row for start, stop in bounds for row in range(start, stop)]
    assert rows == list(range(num_rows))
    assert all(start % size == 0 for start, _ in bounds)


def test_slices_name_every_row_of_every_episode():
    ends = np.array([3, 4, 9])
    assert list(episode_slices(ends, 1, 8)) == [
        EpisodeSlice(0, 1, 3),
        EpisodeSlice(1, 0, 1),
        EpisodeSlice(2, 0, 4),
    ]
    assert list(episode_slices(ends, 3, 3)) == []
