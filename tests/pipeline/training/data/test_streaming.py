"""Training on features that are not held in memory, against numpy and features that are."""

import re
import tracemalloc
from contextlib import closing

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, StoreError
from pipeline.features.store.attributes import SourceShare
from pipeline.features.store.feature_store import FeatureStore
from pipeline.training.config import parse_memory, with_settings
from pipeline.training.data.steps import Windows
from pipeline.training.data.streaming import StreamedWindowData, warn_of_uneven_shares
from pipeline.training.data.windows import WindowData
from pipeline.training.distributed import Ranks
from pipeline.training.presets import debug
from pipeline.training.session import train
from pipeline.training.validation import heldout_sample
from tests.pipeline.tiny import complete_store
from tests.pipeline.training.data.test_stores import make_store

LENGTHS = (*np.random.default_rng(3).integers(2, 90, 128).tolist(), 300)  # many cross a unit
HELDOUT = (1, 6, 20, 41)
UNIT_ROWS = 256
OBS, PRED = 4, 8
MB = 1_000_000
SETTINGS = (f"agent.obs_horizon={OBS}", "heldout_share=0.2", "micro_batches=2")


def streamed(
    *stores: FeatureStore,
    memory: int | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> StreamedWindowData:
    """Stores at the least memory that is accepted, unless told."""
    config = with_settings(debug(), SETTINGS)
    memory = least_memory(*stores) if memory is None else memory
    return StreamedWindowData(*stores, config=config, memory=memory, ranks=ranks)


def least_memory(*stores: FeatureStore) -> int:
    with pytest.raises(ConfigError) as refusal:
        streamed(*stores, memory=1)
    (number,) = re.findall(r"want ([\d,]+)MB or more a process: ", str(refusal.value))
    return MB * int(number.replace(",", ""))


def drawn(data: StreamedWindowData, steps: range) -> list[Windows]:
    batches = data.batches(with_settings(debug(), SETTINGS), Ranks())
    return [part for step in steps for part in batches.parts(step)]


def draws(data: StreamedWindowData, count: int) -> np.ndarray:
    """The first draws, by the row numbers that the tiny store's states begin with."""
    windows = drawn(data, range(-(-count // 8)))
    return torch.cat([part.state[:, -1, 0] for part in windows])[:count].long().numpy()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FeatureStore:
    path = tmp_path_factory.mktemp("streaming") / "s.zarr"
    return complete_store(path, LENGTHS, rows_per_unit=UNIT_ROWS, heldout=HELDOUT)


@pytest.fixture(scope="module")
def held(store) -> WindowData:
    return WindowData(store, heldout_share=0.2)


@pytest.fixture(scope="module")
def data(store):
    with closing(streamed(store)) as opened:
        yield opened


def test_statistics_are_those_of_numpy_over_the_training_rows(store, data):
    episode_of = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    rows = ~np.isin(episode_of, HELDOUT)
    features, steps = store.read_features()[rows].astype(np.float64), store.read_steps()
    found = data.statistics()
    np.testing.assert_allclose(found.feature_mean, features.mean(0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.feature_std, features.std(0), rtol=1e-6)
    np.testing.assert_array_equal(found.state_min, steps.state[rows].min(0))
    np.testing.assert_array_equal(found.state_max, steps.state[rows].max(0))
    np.testing.assert_array_equal(found.action_min, steps.action[rows].min(0))
    np.testing.assert_array_equal(found.action_max, steps.action[rows].max(0))


def test_the_held_out_windows_are_those_of_memory(data, held):
    rows = heldout_sample(held)
    expect_equal(
        data.gather(rows, obs_horizon=OBS, pred_horizon=PRED),
        held.gather(rows, obs_horizon=OBS, pred_horizon=PRED),
    )


def test_every_window_comes_once_an_epoch_in_another_order_each(data, held):
    count = len(held.train_rows)
    rows = draws(data, 2 * count).reshape(2, count)
    for epoch in rows:
        np.testing.assert_array_equal(np.sort(epoch), held.train_rows)
    assert len({tuple(epoch[:20]) for epoch in rows}) == 2
    first_units = rows[0][:100] // UNIT_ROWS
    assert len(set(first_units)) >= 2
    assert (np.diff(first_units) != 0).mean() > 0.3  # windows of several units are shuffled


def test_windows_are_those_of_memory_bit_for_bit(data, held):
    """Observations reach into the unit before: some windows here begin there."""
    crossing = 0
    for windows in drawn(data, range(len(held.train_rows) // 8 + 3)):
        expect_equal(windows, held.gather(windows.rows, obs_horizon=OBS, pred_horizon=PRED))
        seen = held.observed_rows(windows.rows, OBS)
        crossing += int((seen[:, 0] // UNIT_ROWS != windows.rows // UNIT_ROWS).sum())
    assert crossing > 30


def expect_equal(ours: Windows, expected: Windows) -> None:
    for name, tensor in vars(expected).items():
        assert torch.equal(getattr(ours, name), tensor), name


def test_a_step_is_the_same_wherever_one_begins(data):
    straight = drawn(data, range(230))[-6:]
    for ours, expected in zip(drawn(data, range(227, 230)), straight, strict=True):
        expect_equal(ours, expected)


def test_two_stores_and_their_variants_are_streamed_together(tmp_path):
    stores = [make_store(tmp_path / f"{n}.zarr", (300 + n, 60), num_variants=2) for n in range(2)]
    cached = np.concatenate([store.read_features() for store in stores]).astype(np.float32)
    seen, shown = set(), np.zeros(3, int)
    with closing(streamed(*stores)) as data:
        for windows in drawn(data, range(len(data.train_rows) // 8 + 1)):
            seen |= set(windows.rows.tolist())
            rows = data.observed_rows(windows.rows, OBS)
            by_variant = cached[rows].reshape(*rows.shape, 3, 3, 768)  # variants before views
            fits = (windows.features.numpy()[:, :, None] == by_variant).all(axis=(1, 4))
            np.testing.assert_array_equal(fits.sum(axis=1), 1)  # one in all observation steps
            shown += fits.sum(axis=(0, 2))
        assert seen == set(data.train_rows.tolist())
    assert (shown > 0.25 * shown.sum()).all()


def test_memory_stays_within_what_was_said(tmp_path):
    """Twice as many features as memory; what numpy and Python take is counted, batches included."""
    store = complete_store(tmp_path / "s.zarr", (10_400, 10_400), rows_per_unit=256)
    allowed = 47 * MB
    assert 2 * allowed < 20_800 * 3 * 768 * 2
    tracemalloc.start()
    with closing(streamed(store, memory=allowed)) as data:
        batches = data.batches(with_settings(debug(), SETTINGS), Ranks())
        for step in range(0, 10_400 // 8, 25):
            list(batches.parts(step))
        _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.5 * allowed < peak < allowed


def test_a_memory_too_small_is_refused_with_what_is_needed(store):
    least = least_memory(store)
    streamed(store, memory=least).close()
    with pytest.raises(ConfigError, match=f"want {least // MB}MB or more .* 4 units of 256 steps"):
        streamed(store, memory=least - MB)


def flip(store: FeatureStore, unit: int) -> None:
    path = store.path / f"features/c/{unit}/0/0"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("windows", "is_told"), [((100, 109), False), ((60, 120), True)])
def test_shares_of_very_different_sizes_are_told(caplog, windows, is_told):
    warn_of_uneven_shares(windows)
    assert ("come 2.0 times as often" in caplog.text) == is_told


def test_a_unit_that_was_damaged_since_the_first_pass_is_found(tmp_path):
    store = complete_store(tmp_path / "s.zarr", LENGTHS[:40], rows_per_unit=UNIT_ROWS)
    with closing(streamed(store)) as data:
        flip(store, 3)
        with pytest.raises(StoreError, match=r"features.*checksum|unit 3"):
            drawn(data, range(len(data.train_rows) // 8 + 1))
    with pytest.raises(StoreError, match=r"features.*checksum|unit 3"):
        streamed(store)


def test_a_store_that_takes_the_place_of_another_between_epochs_is_found(tmp_path):
    store = complete_store(tmp_path / "s.zarr", LENGTHS[:40], rows_per_unit=UNIT_ROWS)
    other = make_store(tmp_path / "b.zarr", LENGTHS[:40], rows_per_unit=UNIT_ROWS)
    with closing(streamed(store)) as data:
        epoch = len(data.train_rows) // 8
        batches = data.batches(with_settings(debug(), SETTINGS), Ranks())
        for step in range(epoch - 8):
            list(batches.parts(step))
        store.path.rename(tmp_path / "old.zarr")
        other.path.rename(store.path)
        told = f"{store.path}: (not the store that this training began|another store took its)"
        with pytest.raises(StoreError, match=told):
            [part for step in range(epoch - 8, 2 * epoch) for part in batches.parts(step)]


def test_what_cannot_be_streamed_is_refused(store, tmp_path):
    config = with_settings(debug(), ["memory=1000000000"])
    out = tmp_path / "run"
    other = make_store(tmp_path / "b.zarr")
    with pytest.raises(ConfigError, match="--memory with --weights"):
        train([store.path, other.path], out, config, resume=False, weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match="--memory with --live"):
        train([store.path], out, config, resume=False, live=True)
    sources = (SourceShare(num_episodes=1, weight=1.0), SourceShare(num_episodes=1, weight=3.0))
    mixed = make_store(tmp_path / "c.zarr", sources=sources)
    with pytest.raises(ConfigError, match="sources of unequal weight"):
        train([mixed.path], out, config, resume=False)
    with pytest.raises(ConfigError, match="2 processes cannot share 1 units"):
        streamed(other, ranks=Ranks(0, 2))
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "amount"), [("8GB", 8 * 10**9), ("500MB", 5 * 10**8), ("1.5 TB", 15 * 10**11)]
)
def test_an_amount_of_memory_names_its_unit(text, amount):
    assert parse_memory(text) == amount


@pytest.mark.parametrize("text", ["8", "GB", "8gb", "8GiB", "-8GB", "0GB", "8 GB ", "1e9MB", ""])
def test_an_amount_without_its_unit_is_refused(text):
    with pytest.raises(ConfigError, match=r"want a number and its unit, as in 8GB or 500MB"):
        parse_memory(text)
