"""Batches whose features are read from files: the same for any number of processes."""

import tracemalloc

import numpy as np
import pytest
import torch

from pipeline.errors import StoreError
from pipeline.features.store.attributes import SourceShare
from pipeline.training.config import with_settings
from pipeline.training.data.batches import Batches
from pipeline.training.data.sampling import BatchSampler, seeded_generator
from pipeline.training.data.windows import WindowData, Windows
from pipeline.training.distributed import Ranks
from pipeline.training.presets import debug
from tests.pipeline.tiny import complete_store
from tests.pipeline.training.data.test_stores import make_store

OBS, BATCH, PARTS = 4, 8, 4
CONFIG = with_settings(
    debug(),
    [f"agent.obs_horizon={OBS}", "validation_share=0.2", f"gradient_accumulation_steps={PARTS}"],
)
LENGTHS = (*np.random.default_rng(3).integers(2, 90, 20).tolist(), 300)  # many cross a unit
MB = 1_000_000

pytestmark = pytest.mark.usefixtures("unchecked")  # in hundreds of steps


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two stores with variants; sources of unequal weight; one store's units are shards."""
    folder = tmp_path_factory.mktemp("batches")
    sources = tuple(SourceShare(num_episodes=n, weight=w) for n, w in ((11, 1.0), (10, 3.0)))
    return [
        make_store(folder / "a.zarr", LENGTHS, num_variants=2, sources=sources, rows_per_unit=512),
        make_store(folder / "b.zarr", (300, 60), num_variants=2),
    ]


@pytest.fixture(scope="module")
def data(stores):
    return WindowData(*stores, features=("pooled",), validation_share=0.2, weights=(1.0, 2.0))


def drawn(data: WindowData, steps: range, ranks: Ranks = Ranks()) -> list[list[Windows]]:  # noqa: B008
    batches = Batches(data, CONFIG, ranks)
    return [list(batches.chunks(step)) for step in steps]


def expect_equal(ours: Windows, expected: Windows) -> None:
    assert torch.equal(ours.features["pooled"], expected.features["pooled"])
    for name in ("rows", "state", "actions", "valid"):
        assert torch.equal(getattr(ours, name), getattr(expected, name)), name


def test_a_batch_is_what_an_index_into_all_features_gives(stores, data):
    """The oracle holds all features in memory and knows no files, chunks or places."""
    features = np.concatenate([store.read_features("pooled") for store in stores])
    sampler = BatchSampler(data.train_rows, BATCH, CONFIG.seed, draws=data.draws)
    crossing, shown = 0, set()
    for step, parts in enumerate(drawn(data, range(200))):
        rows = sampler.batch(step)
        generator = seeded_generator(CONFIG.seed, "variants", step)
        variants = torch.randint(0, 3, (BATCH, 3), generator=generator).numpy()
        first = data.first_rows[data.episode_of[rows]].numpy()
        seen = np.maximum(rows.numpy()[:, None] + np.arange(1 - OBS, 1), first[:, None])
        slots = variants * 3 + np.arange(3)
        expected = features[seen[:, :, None], slots[:, None]].astype(np.float32)
        assert torch.equal(torch.cat([part.rows for part in parts]), rows)
        found = torch.cat([part.features["pooled"] for part in parts])
        np.testing.assert_array_equal(found, expected)
        crossing += int((seen[:, 0] // 256 != seen[:, -1] // 256).sum())
        shown |= set(variants.flatten().tolist())
    assert crossing > 5
    assert shown == {0, 1, 2}


@pytest.mark.parametrize("size", [2, 4])
def test_processes_share_the_batches_of_one(data, size):
    alone = drawn(data, range(30))
    shared = [drawn(data, range(30), Ranks(rank, size)) for rank in range(size)]
    for step, parts in enumerate(alone):
        for number, part in enumerate(parts):
            expect_equal(shared[number % size][step][number // size], part)


def test_a_step_is_the_same_wherever_one_begins(data):
    """Forwards, backwards and again: what was announced ahead is never taken for another step."""
    straight = drawn(data, range(230))
    jumps = [227, 228, 5, 6, 6, 229]
    batches = Batches(data, CONFIG, Ranks())
    for step in jumps:
        for ours, expected in zip(batches.chunks(step), straight[step], strict=True):
            expect_equal(ours, expected)


def test_memory_holds_no_features_but_those_of_a_few_batches(tmp_path):
    """96 MB of features; what numpy and Python take is counted, the check of all units included."""
    store = complete_store(tmp_path / "s.zarr", (10_400, 10_400), rows_per_unit=16_384)
    tracemalloc.start()
    batches = Batches(
        WindowData(store, features=("pooled",), validation_share=0.2), CONFIG, Ranks()
    )
    for step in range(0, 1_300, 25):
        list(batches.chunks(step))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * MB


def test_a_store_that_takes_the_place_of_another_in_training_is_found(tmp_path):
    store = complete_store(tmp_path / "s.zarr", LENGTHS)
    other = make_store(tmp_path / "b.zarr", LENGTHS)
    data = WindowData(store, features=("pooled",), validation_share=0.2)
    batches = Batches(data, CONFIG, Ranks())
    list(batches.chunks(0))
    store.path.rename(tmp_path / "old.zarr")
    other.path.rename(store.path)
    with pytest.raises(StoreError, match="the store was replaced"):
        list(batches.chunks(1))


def test_a_damaged_unit_is_found_before_training(tmp_path):
    store = complete_store(tmp_path / "s.zarr", (700, 300), rows_per_unit=512)
    path = store.path / "features/pooled/c/1/0/0"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        StoreError, match=r"rows 512..1000 \(unit 1\) of features/pooled differ from"
    ):
        WindowData(store, features=("pooled",), validation_share=0.2)
