"""What every EpisodeReader must do, and the two tiny episodes that every format must return."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.base import EpisodeReader
from pipeline.errors import FrameReadError

TINY_FPS = 10.0
TINY_LENGTHS = (3, 5)
# Height and width differ, and so do the views, so that no axis can be swapped unnoticed.
TINY_SIZES = {"front": (6, 8), "wrist": (4, 5)}


def tiny_frames(episode: int, view: str) -> np.ndarray:
    """Frames in which every pixel of every step, view and episode is its own."""
    shape = (TINY_LENGTHS[episode], *TINY_SIZES[view], 3)
    offset = 100 * episode + 37 * list(TINY_SIZES).index(view)
    return ((np.arange(np.prod(shape)) * 7 + offset) % 256).astype(np.uint8).reshape(shape)


def tiny_state(episode: int) -> np.ndarray:
    """Two columns of halves, which float32 holds exactly."""
    return (np.arange(2 * TINY_LENGTHS[episode]) / 2 + episode).reshape(-1, 2)


def tiny_action(episode: int) -> np.ndarray:
    return -(np.arange(3 * TINY_LENGTHS[episode]) / 4).reshape(-1, 3) - episode


class ReaderContract:
    """Subclasses only say how to write the tiny episodes and open them."""

    def make_reader(self, root: Path) -> EpisodeReader:
        raise NotImplementedError

    @pytest.fixture
    def reader(self, tmp_path):
        reader = self.make_reader(tmp_path)
        yield reader
        reader.close()

    def test_it_describes_the_dataset(self, reader):
        assert reader.view_names == ("front", "wrist")
        assert reader.fps == TINY_FPS
        assert reader.num_episodes == 2
        assert [reader.episode_length(episode) for episode in range(2)] == [3, 5]
        assert reader.frame_size(1, "front") == (6, 8)
        assert reader.frame_size(0, "wrist") == (4, 5)
        assert reader.episode_name(0) != reader.episode_name(1)

    def test_frames_are_bit_equal_whatever_the_order_of_reading(self, reader):
        for episode, start, stop in [(1, 0, 5), (0, 0, 3), (1, 2, 4), (0, 2, 3), (1, 4, 5)]:
            got = reader.frames(episode, start, stop)
            assert len(got) == 2
            for frames, view in zip(got, TINY_SIZES, strict=True):
                assert frames.dtype == np.uint8
                np.testing.assert_array_equal(frames, tiny_frames(episode, view)[start:stop])

    def test_an_empty_range_gives_no_frames(self, reader):
        assert [frames.shape for frames in reader.frames(0, 3, 3)] == [(0, 6, 8, 3), (0, 4, 5, 3)]

    @pytest.mark.parametrize(("start", "stop"), [(0, 4), (-1, 2), (2, 1), (3, 4)])
    def test_steps_that_are_not_there_raise_and_are_not_skipped(self, reader, start, stop):
        with pytest.raises(FrameReadError, match=r"0\.\.3"):
            reader.frames(0, start, stop)

    def test_state_and_action_are_float32_and_equal(self, reader):
        for episode in range(2):
            for got, want in (
                (reader.state(episode), tiny_state(episode)),
                (reader.action(episode), tiny_action(episode)),
            ):
                assert got.dtype == np.float32
                np.testing.assert_array_equal(got, want)

    def test_time_begins_at_zero_and_advances_by_one_control_step(self, reader):
        got = reader.timestamp(1)
        assert got.dtype == np.float64
        # 1e-12 s: float64 rounding of i / fps against a sum of 0.1
        np.testing.assert_allclose(got, [0.0, 0.1, 0.2, 0.3, 0.4], rtol=0, atol=1e-12)

    @pytest.mark.parametrize("episode", [-1, 2])
    def test_an_episode_that_does_not_exist_is_an_index_error(self, reader, episode):
        with pytest.raises(IndexError):
            reader.episode_length(episode)

    def test_closing_twice_is_fine(self, reader):
        reader.frames(0, 0, 1)
        reader.close()
        reader.close()
