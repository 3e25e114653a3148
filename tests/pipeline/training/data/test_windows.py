"""Windows and batches, against loops in numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import StoreError
from pipeline.features.store.attributes import SourceShare
from pipeline.training.data.sampling import BatchSampler
from pipeline.training.data.windows import WindowData
from tests.pipeline.tiny import complete_store

LENGTHS = (12, 9, 10)
ENDS = np.cumsum(LENGTHS)
OBS, PRED = 3, 8
FIRST_BATCH = [15, 29, 13, 28, 9, 17, 7, 20]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return complete_store(tmp_path_factory.mktemp("windows") / "s.zarr", LENGTHS)


@pytest.fixture(scope="module")
def data(store):
    return WindowData(store, features=("pooled",), validation_share=0.34)


def test_windows_equal_a_loop_over_steps(store, data):
    """Rows are numbered in the first column of state and action, so that padding can be read."""
    steps, features = store.read_steps(), store.read_features("pooled")
    rows = torch.arange(sum(LENGTHS))
    windows = data.gather(rows, obs_horizon=OBS, pred_horizon=PRED)
    for row in range(sum(LENGTHS)):
        episode = int(np.searchsorted(ENDS, row, side="right"))
        first, last = ENDS[episode] - LENGTHS[episode], ENDS[episode] - 1
        for i in range(OBS):
            seen = max(row - OBS + 1 + i, first)
            assert windows.state[row, i, 0] == seen
            np.testing.assert_array_equal(
                windows.features["pooled"][row, i].numpy(), features[seen].astype(np.float32)
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
    validation = set(data.episode_of[data.validation_rows].tolist())
    train = set(data.episode_of[data.train_rows].tolist())
    assert validation == {1}
    assert train == {0, 2}

    steps, features = store.read_steps(), store.read_features("pooled").astype(np.float64)
    rows = data.train_rows.numpy()
    statistics = data.statistics
    np.testing.assert_allclose(statistics.feature_mean["pooled"], features[rows].mean(0), atol=1e-6)
    np.testing.assert_allclose(statistics.feature_std["pooled"], features[rows].std(0), atol=1e-6)
    np.testing.assert_array_equal(statistics.state.minimum, steps.state[rows].min(0))
    np.testing.assert_array_equal(statistics.action.maximum, steps.action[rows].max(0))


def test_without_a_share_nothing_is_held_out(store):
    data = WindowData(store, features=("pooled",), validation_share=0.0)
    assert len(data.validation_rows) == 0
    assert len(data.train_rows) == sum(LENGTHS)


def test_a_single_episode_cannot_be_held_out(tmp_path):
    with pytest.raises(StoreError, match="validation_share=0"):
        WindowData(
            complete_store(tmp_path / "s.zarr", (9,)), features=("pooled",), validation_share=0.1
        )


@pytest.mark.parametrize("share", [0.01, 0.34, 0.9])
def test_the_split_of_the_manifest_is_used_whatever_the_share(tmp_path, share):
    data = WindowData(
        complete_store(tmp_path / "s.zarr", LENGTHS, validation=(0, 2)),
        features=("pooled",),
        validation_share=share,
    )
    assert set(data.episode_of[data.validation_rows].tolist()) == {0, 2}
    assert set(data.episode_of[data.train_rows].tolist()) == {1}


def test_a_share_of_zero_trains_on_the_episodes_of_the_split_too(tmp_path):
    data = WindowData(
        complete_store(tmp_path / "s.zarr", LENGTHS, validation=(0, 2)),
        features=("pooled",),
        validation_share=0.0,
    )
    assert len(data.validation_rows) == 0
    assert len(data.train_rows) == sum(LENGTHS)


def weighted(path: Path, *weights: float, validation: tuple[int, ...] | None = None) -> WindowData:
    """Three sources of one episode each, of 12, 9 and 10 rows."""
    sources = tuple(SourceShare(num_episodes=1, weight=weight) for weight in weights)
    return WindowData(
        complete_store(path / "s.zarr", LENGTHS, sources=sources, validation=validation),
        features=("pooled",),
        validation_share=0.5 if validation else 0.0,
    )


def draws_of(data: WindowData, *, batch_size: int, steps: int) -> torch.Tensor:
    sampler = BatchSampler(data.train_rows, batch_size, 0, draws=data.draws)
    return torch.cat([sampler.batch(step) for step in range(steps)])


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_equal_weights_change_no_batch(tmp_path, weight):
    """The order that stores of one source had before there were sources."""
    data = weighted(tmp_path, weight, weight, weight)
    rows = torch.arange(sum(LENGTHS))
    plain = BatchSampler(rows, 8, 0)
    wanted = torch.cat([plain.batch(step) for step in range(20)])
    assert torch.equal(draws_of(data, batch_size=8, steps=20), wanted)
    # The first batch as it was at 2b35e7c, before there were sources.
    assert plain.batch(0).tolist() == FIRST_BATCH


def test_a_source_is_drawn_in_proportion_to_its_rows_times_its_weight(tmp_path):
    data = weighted(tmp_path, 1.0, 4.0, 0.5)
    num_epochs = 40
    rows = draws_of(data, batch_size=sum(LENGTHS), steps=num_epochs)
    counts = torch.bincount(data.episode_of[rows], minlength=3) / num_epochs
    exact = np.array([12 * 1.0, 9 * 4.0, 10 * 0.5])
    exact *= sum(LENGTHS) / exact.sum()
    np.testing.assert_allclose(counts, exact, rtol=0, atol=1)  # whole draws an epoch
    assert counts.sum() == sum(LENGTHS)
    # Within a source every row comes equally often, up to one turn that has not ended.
    per_row = torch.bincount(rows, minlength=sum(LENGTHS))
    for episode, end in enumerate(ENDS):
        own = per_row[end - LENGTHS[episode] : end]
        assert own.max() - own.min() <= 1


def test_a_share_that_rounds_to_nothing_is_still_drawn(tmp_path):
    data = weighted(tmp_path, 1000.0, 1.0, 1.0)
    rows = draws_of(data, batch_size=sum(LENGTHS), steps=1)
    assert set(data.episode_of[rows].tolist()) == {0, 1, 2}


def test_a_source_that_is_held_out_whole_is_never_drawn(tmp_path):
    data = weighted(tmp_path, 1.0, 9.0, 2.0, validation=(1,))
    rows = draws_of(data, batch_size=22, steps=10)
    counts = torch.bincount(data.episode_of[rows], minlength=3)
    assert counts.tolist() == [80, 0, 140]  # 22 draws an epoch, 12 x 1 : 10 x 2 = 8.25 : 13.75


def test_a_weighted_batch_depends_on_seed_and_step_alone(tmp_path):
    data = weighted(tmp_path, 1.0, 4.0, 0.5)
    wanted = draws_of(data, batch_size=7, steps=18)[-7:]
    sampler = BatchSampler(data.train_rows, 7, 0, draws=data.draws)
    assert torch.equal(sampler.batch(17), wanted)
    assert not torch.equal(BatchSampler(data.train_rows, 7, 1, draws=data.draws).batch(17), wanted)


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
