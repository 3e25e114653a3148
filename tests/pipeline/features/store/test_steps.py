"""Steps that pass by in pieces, against the same steps in memory."""

import numpy as np
import pytest

from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.features.store.steps import PIECE_ROWS, STEP_ARRAYS, RecordedSteps, StepArrays
from tests.pipeline.tiny import tiny_steps


class Recordings(ManifestReader):
    """A reader of episodes without frames."""

    view_names: tuple[str, ...] = ()
    fps = 20.0
    fit = "stretch"
    validation = None

    def __init__(self, steps: StepArrays):
        self.steps = steps
        self.num_episodes = len(steps.episode_ends)
        self.source_of = (0,) * self.num_episodes
        self.starts = [0, *steps.episode_ends[:-1]]

    def _rows(self, episode: int) -> slice:
        return slice(self.starts[episode], self.steps.episode_ends[episode])

    def episode_length(self, episode: int) -> int:
        rows = self._rows(episode)
        return int(rows.stop - rows.start)

    def state(self, episode: int) -> np.ndarray:
        return self.steps.state[self._rows(episode)]

    def action(self, episode: int) -> np.ndarray:
        return self.steps.action[self._rows(episode)]

    def timestamp(self, episode: int) -> np.ndarray:
        return self.steps.timestamp[self._rows(episode)]

    def unused(self, *words: object) -> object:
        raise AssertionError(words)

    episode_number = episode_name = frame_size = frames = frame_drift = close = unused


@pytest.mark.parametrize(
    "lengths", [(5,), (PIECE_ROWS,), (3, 2 * PIECE_ROWS, 1, PIECE_ROWS - 4, 9)]
)
@pytest.mark.parametrize("name", STEP_ARRAYS)
def test_pieces_of_recorded_steps_are_those_of_the_whole_arrays(name, lengths):
    held = tiny_steps(lengths)
    reader = Recordings(held)
    recorded = RecordedSteps(reader)
    assert recorded.episode_ends.tolist() == held.episode_ends.tolist()
    ours, theirs = list(recorded.pieces(name)), list(held.pieces(name))
    assert [len(piece) for piece in ours] == [len(piece) for piece in theirs]
    assert all(len(piece) == PIECE_ROWS for piece in ours[:-1])
    for piece, expected in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(piece, expected)
