"""What every FormatReader must do, and the two tiny episodes that every format must return."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.base import FormatReader
from pipeline.errors import DatasetError, FrameReadError

TINY_FPS = 10.0
TINY_LENGTHS = (3, 5)
# Height and width differ, and so do the views, so that no axis can be swapped unnoticed. Codecs
# of video take even sizes only, and small ones badly.
TINY_SIZES = {"front": (6, 8), "wrist": (4, 5)}
TINY_STATE_NAMES = ("x", "y")
TINY_ACTION_NAMES = ("dx", "dy", "grip")


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


class FormatContract:
    """Subclasses say how to write the tiny episodes and open them, and where things lie there.

    `make_reader` writes the episodes with numbers 0 and 1, the views front and wrist in this
    order, state and action as float32 or float64, and opens them; keys are the format's own. A
    format that cannot hold the tiny frames bit by bit sets `lossless = False`, overrides `frames`
    with what it writes, and gets within `tolerance` levels in every pixel's mean.
    """

    lossless = True
    tolerance = 0.0
    """Largest mean absolute difference of a frame in levels of [0, 255], for lossy codecs."""
    view_keys: tuple[str, str]
    """Keys of front and wrist."""
    state_key: str
    action_key: str
    fps: float | None = TINY_FPS
    """What the files say; None for a layout that does not."""

    def make_reader(self, root: Path) -> FormatReader:
        raise NotImplementedError

    def frames(self, episode: int, view: str) -> np.ndarray:
        """Return what was written; `view` is `front` or `wrist`."""
        return tiny_frames(episode, view)

    @pytest.fixture
    def reader(self, tmp_path):
        reader = self.make_reader(tmp_path)
        yield reader
        reader.close()

    def check_frames(self, reader: FormatReader, episode: int, start: int, stop: int) -> None:
        got = reader.frames(episode, start, stop)
        assert len(got) == 2
        for frames, view in zip(got, ("front", "wrist"), strict=True):
            wanted = self.frames(episode, view)[start:stop]
            assert frames.dtype == np.uint8
            if self.lossless:
                np.testing.assert_array_equal(frames, wanted)
            else:
                assert frames.shape == wanted.shape
                differences = np.abs(frames.astype(float) - wanted).mean(axis=(1, 2, 3))
                assert (differences <= self.tolerance).all(), differences

    def test_it_is_a_format_reader_and_describes_the_dataset(self, reader):
        assert isinstance(reader, FormatReader)
        assert reader.fps == self.fps
        assert reader.num_episodes == 2
        assert [reader.episode_length(episode) for episode in range(2)] == list(TINY_LENGTHS)
        assert reader.episode_name(0) != reader.episode_name(1)
        for key, view in zip(self.view_keys, ("front", "wrist"), strict=True):
            for episode in range(2):
                assert reader.frame_size(episode, key) == self.frames(episode, view).shape[1:3]
                assert 0 <= reader.frame_drift(episode, key) < 0.5 / TINY_FPS

    def test_episodes_carry_the_numbers_of_the_files(self, reader):
        assert [reader.episode_number(episode) for episode in range(2)] == [0, 1]

    def test_frames_are_those_that_were_written_whatever_the_order_of_reading(self, reader):
        for episode, start, stop in [(1, 0, 5), (0, 0, 3), (1, 2, 4), (0, 2, 3), (1, 4, 5)]:
            self.check_frames(reader, episode, start, stop)
        for step in range(5):  # one after the other, as embedding does it, and back
            self.check_frames(reader, 1, step, step + 1)
        self.check_frames(reader, 1, 0, 1)

    def test_an_empty_range_gives_no_frames(self, reader):
        for start in (0, 3):
            shapes = [frames.shape for frames in reader.frames(0, start, start)]
            assert shapes == [(0, *self.frames(0, view).shape[1:]) for view in ("front", "wrist")]

    @pytest.mark.parametrize(("start", "stop"), [(0, 4), (-1, 2), (2, 1), (3, 4)])
    def test_steps_that_are_not_there_raise_and_are_not_skipped(self, reader, start, stop):
        with pytest.raises(FrameReadError, match=r"0\.\.3"):
            reader.frames(0, start, stop)

    def test_state_and_action_are_equal(self, reader):
        for episode in range(2):
            for key, want in (
                (self.action_key, tiny_action(episode)),
                (self.state_key, tiny_state(episode)),
            ):
                got = reader.numbers(episode, key)
                assert got.dtype in (np.float32, np.float64)
                np.testing.assert_array_equal(got, want)

    def test_time_if_kept_begins_at_zero_and_advances_by_one_control_step(self, reader):
        got = reader.timestamp(1)
        if got is None:
            return
        assert got.dtype == np.float64
        # 1e-6 s: files keep seconds as float32, of which half an ulp at 0.4 s is 1.5e-8
        np.testing.assert_allclose(got, [0.0, 0.1, 0.2, 0.3, 0.4], rtol=0, atol=1e-6)

    @pytest.mark.parametrize("episode", [-1, 2])
    def test_an_episode_that_does_not_exist_is_an_index_error(self, reader, episode):
        with pytest.raises(IndexError):
            reader.episode_length(episode)
        with pytest.raises(IndexError):
            reader.episode_number(episode)
        with pytest.raises(IndexError):
            reader.frames(episode, 0, 1)

    def test_a_subset_that_the_files_do_not_name_is_refused(self, reader):
        with pytest.raises(DatasetError, match="no-such-subset") as caught:
            reader.subset("no-such-subset")
        assert "\n" not in str(caught.value)

    def test_closing_twice_is_fine_and_reading_opens_again(self, reader):
        self.check_frames(reader, 0, 0, 3)
        reader.close()
        reader.close()
        self.check_frames(reader, 0, 0, 3)
        np.testing.assert_array_equal(reader.numbers(1, self.state_key), tiny_state(1))
