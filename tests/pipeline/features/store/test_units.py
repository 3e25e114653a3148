"""Units of work: chunk-aligned, disjoint, complete."""

import numpy as np
import pytest

from pipeline.features.store.units import CHUNK_ROWS, EpisodeSlice, cut, episode_slices


@pytest.mark.parametrize("num_rows", [1, 255, 256, 257, 1000])
@pytest.mark.parametrize("size", [CHUNK_ROWS, 3 * CHUNK_ROWS])
def test_units_cover_every_row_once_and_begin_at_their_own_borders(num_rows, size):
    units = [*cut(0, num_rows, size)]
    rows = [row for unit in units for row in range(unit.start, unit.stop)]
    assert rows == list(range(num_rows))
    assert all(unit.start % size == 0 for unit in units)


def test_slices_name_every_row_of_every_episode():
    ends = np.array([3, 4, 9])
    assert list(episode_slices(ends, 1, 8)) == [
        EpisodeSlice(0, 1, 3),
        EpisodeSlice(1, 0, 1),
        EpisodeSlice(2, 0, 4),
    ]
    assert list(episode_slices(ends, 3, 3)) == []
