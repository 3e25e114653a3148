"""Values read from a store's files by position, against zarr."""

import numpy as np
import pytest
import torch

from pipeline.errors import StoreError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.rows import DeviceRows, StoredRows
from tests.pipeline.tiny import complete_store
from tests.pipeline.training.data.test_stores import make_store

NAME = "features/pooled"
LENGTHS = (700, 1, 420)  # 1,121 rows: the last unit and the last chunk are short
SLOTS = 9  # three views, as recorded and in two variants


def store_of(folder, name, **attributes) -> FeatureStore:
    return make_store(folder / f"{name}.zarr", LENGTHS, num_variants=2, **attributes)


@pytest.mark.parametrize(
    "attributes",
    [{}, {"rows_per_unit": 512}, {"codec": "blosc"}, {"codec": "blosc", "rows_per_unit": 512}],
    ids=str,
)
def test_values_of_any_places_are_those_of_zarr(tmp_path, attributes):
    """Single slots and neighbors across chunks, units, shards and stores; some more than once."""
    stores = [
        store_of(tmp_path, "a", **attributes),
        make_store(tmp_path / "b.zarr", num_variants=2),
    ]
    expected = np.concatenate([store.read_features("pooled") for store in stores]).reshape(-1, 768)
    rows = StoredRows(stores, NAME, cache=tmp_path / "cache")
    numbers = np.random.default_rng(0)
    runs = [np.arange(row * SLOTS - 5, row * SLOTS + 7) for row in (256, 512, 768, sum(LENGTHS))]
    places = np.concatenate([numbers.integers(0, len(expected), 300), *runs, [0, 0]])
    places = torch.from_numpy(places).view(-1, 5)
    rows.announce(places)
    found = rows.read(places)
    assert found.shape == (*places.shape, 768)
    np.testing.assert_array_equal(found.numpy(), expected[places.numpy()])
    whole = rows.read(torch.arange(len(expected)))
    np.testing.assert_array_equal(whole.numpy(), expected)
    in_memory = DeviceRows(rows, torch.device("cpu"))
    assert rows.nbytes == expected.nbytes
    assert torch.equal(in_memory.read(places), found)


@pytest.mark.parametrize("change", ["replaced", "written", "removed"])
def test_a_file_that_is_no_longer_the_one_that_was_opened_is_refused(tmp_path, change):
    store = complete_store(tmp_path / "s.zarr", (300,))
    rows = StoredRows([store], NAME)
    path = store.path / "features/pooled/c/1/0/0"
    if change == "replaced":
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
        copy.replace(path)
    elif change == "written":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    assert rows.read(torch.tensor([0])).shape == (1, 768)
    with pytest.raises(StoreError, match="features/pooled/c/1/0/0"):
        rows.read(torch.tensor([256 * 3]))
    if change == "removed":
        with pytest.raises(StoreError, match=r"c/1/0/0: cannot be read .* run vla-embed again"):
            rows.announce(torch.tensor([256 * 3]))
        with pytest.raises(StoreError, match=r"c/1/0/0: cannot be read .* run vla-embed again"):
            StoredRows([store], NAME)


def test_a_shard_whose_index_names_other_chunks_is_refused(tmp_path):
    store = store_of(tmp_path, "s", rows_per_unit=512)
    path = store.path / "features/pooled/c/1/0/0"
    content = path.read_bytes()
    path.write_bytes(content[:-30] + b"\xff" * 26 + content[-4:])
    with pytest.raises(StoreError, match="expected chunks"):
        StoredRows([store], NAME)


def test_compressed_features_are_read_from_a_copy_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = store_of(tmp_path, "s", codec="blosc")
    rows = StoredRows([store], NAME)
    found = rows.read(torch.arange(3))
    np.testing.assert_array_equal(found, store.read_features("pooled")[0, :3])
    assert list((tmp_path / "cache/frozen-vla/features").iterdir())
