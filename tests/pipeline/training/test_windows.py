"""Windows and batches, against loops in numpy."""

import numpy as np
import pytest
import torch

from pipeline.errors import StoreError
from pipeline.training.windows import BatchSampler, WindowData
from tests.pipeline.tiny import complete_store

LENGTHS = (12, 9, 10)
ENDS = np.cumsum(LENGTHS)
OBS, PRED = 3, 8


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return complete_store(tmp_path_factory.mktemp("windows") / "s.zarr", LENGTHS)


@pytest.fixture(scope="module")
def data(store):
    return WindowData(store, heldout_share=0.34)


def test_windows_equal_a_loop_over_steps(store, data):
    """Rows are numbered in the first column of state and action, so that padding can be read."""
    steps, features = store.read_steps(), store.read_features()
    rows = torch.arange(sum(LENGTHS))
    windows = data.gather(rows, obs_horizon=OBS, pred_horizon=PRED)
    for row in range(sum(LENGTHS)):
        episode = int(np.searchsorted(ENDS, row, side="right"))
        first, last = ENDS[episode] - LENGTHS[episode], ENDS[episode] - 1
        for i in range(OBS):
            seen = max(row - OBS + 1 + i, first)
            assert windows.state[row, i, 0] == seen
            np.testing.assert_array_equal(
                windows.features[row, i].numpy(), features[seen].astype(np.float32)
            )
        for i in range(PRED):
            assert windows.actions[row, i, 0] == min(row + i, last)
            assert bool(windows.valid[row, i]) == (row + i <= last)
        np.testing.assert_array_equal(windows.actions[row, 0].numpy(), steps.action[row])


def test_executed_actions_begin_at_the_current_step(data):
    """The rollout executes chunk[0:8]: chunk[0] must be the action of the last observed step."""
    windows = data.gather(torch.tensor([5]), obs_horizon=2, pred_horizon=PRED)
    assert windows.state[0, :, 0].tolist() == [4, 5]
    assert windows.actions[0, :, 0].tolist() == [5, 6, 7, 8, 9, 10, 11, 11]


def test_held_out_episodes_stay_out_of_training_and_its_statistics(store, data):
    heldout = set(data.episode_of[data.heldout_rows].tolist())
    train = set(data.episode_of[data.train_rows].tolist())
    assert heldout == {1}
    assert train == {0, 2}

    steps, features = store.read_steps(), store.read_features().astype(np.float64)
    rows = data.train_rows.numpy()
    statistics = data.statistics()
    np.testing.assert_allclose(statistics.feature_mean, features[rows].mean(0), atol=1e-6)
    np.testing.assert_allclose(statistics.feature_std, features[rows].std(0), atol=1e-6)
    np.testing.assert_array_equal(statistics.state_min, steps.state[rows].min(0))
    np.testing.assert_array_equal(statistics.action_max, steps.action[rows].max(0))


def test_without_a_share_nothing_is_held_out(store):
    data = WindowData(store, heldout_share=0.0)
    assert len(data.heldout_rows) == 0
    assert len(data.train_rows) == sum(LENGTHS)


def test_a_single_episode_cannot_be_held_out(tmp_path):
    with pytest.raises(StoreError, match="heldout_share=0"):
        WindowData(complete_store(tmp_path / "s.zarr", (9,)), heldout_share=0.1)


def test_every_epoch_sees_every_row_once_in_another_order():
    rows = torch.arange(100, 110)
    sampler = BatchSampler(rows, batch_size=4, seed=0)
    stream = torch.cat([sampler.batch(step) for step in range(10)])
    epochs = stream.reshape(4, 10)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == rows.tolist()
    assert len({tuple(epoch.tolist()) for epoch in epochs}) > 1


def test_a_batch_depends_on_seed_and_step_alone():
    rows = torch.arange(50)
    straight = BatchSampler(rows, batch_size=8, seed=3)
    wanted = [straight.batch(step) for step in range(20)][17]
    assert torch.equal(BatchSampler(rows, batch_size=8, seed=3).batch(17), wanted)
    assert not torch.equal(BatchSampler(rows, batch_size=8, seed=4).batch(17), wanted)


def test_a_batch_may_be_larger_than_the_data():
    batch = BatchSampler(torch.arange(3), batch_size=8, seed=0).batch(5)
    assert len(batch) == 8
