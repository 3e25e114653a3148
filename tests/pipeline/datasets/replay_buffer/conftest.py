"""A tiny replay buffer for the tests of its reader."""

import pytest

from tests.pipeline.datasets.replay_buffer.zarr_files import tiny_arrays, write_replay_buffer


@pytest.fixture
def root(tmp_path):
    return write_replay_buffer(tmp_path / "tiny.zarr", tiny_arrays())
