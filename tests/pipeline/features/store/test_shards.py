"""Large stores: one file is a shard of chunks and is the unit; readers do not care."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.errors import StoreError
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.encode.target import replace_attributes
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.units import CHUNK_ROWS, SHARD_BYTES, SHARD_ROWS, choose_rows_per_unit
from tests.pipeline.features.still_life import write_still_life
from tests.pipeline.tiny import complete_store, create_store, fill_store, tiny_features
from tests.tower import tiny_tower

ROWS_PER_UNIT = 2 * CHUNK_ROWS
LENGTHS = (CHUNK_ROWS + 100, ROWS_PER_UNIT, 9)  # two units, the second short, each of two chunks
NUM_ROWS = sum(LENGTHS)


def chunk_files(store: Path, name: str) -> list[str]:
    return sorted(path.name for path in (store / name / "c").iterdir())


@pytest.mark.parametrize("codec", ["none", "blosc"])
def test_a_shard_is_one_file_a_unit_and_every_row_comes_back(tmp_path, codec):
    store = complete_store(tmp_path / "s.zarr", LENGTHS, rows_per_unit=ROWS_PER_UNIT, codec=codec)
    assert [store.unit_rows(unit) for unit in range(store.num_units)] == [(0, 512), (512, 877)]
    for name in ("features/pooled", "frame_hash"):
        assert chunk_files(store.path, name) == ["0", "1"]
    np.testing.assert_array_equal(store.read_features("pooled"), tiny_features(NUM_ROWS))
    group = zarr.open_group(store.path, mode="r")
    np.testing.assert_array_equal(
        group["features/pooled"][500:520], tiny_features(NUM_ROWS)[500:520]
    )
    assert group["features/pooled"].chunks[0] == CHUNK_ROWS


def test_the_size_of_its_files_changes_no_number_of_a_store(tmp_path):
    sharded = complete_store(tmp_path / "a.zarr", LENGTHS, rows_per_unit=ROWS_PER_UNIT)
    plain = complete_store(tmp_path / "b.zarr", LENGTHS)
    assert sharded.num_units < plain.num_units
    np.testing.assert_array_equal(sharded.read_features("pooled"), plain.read_features("pooled"))
    np.testing.assert_array_equal(sharded.read_steps().state, plain.read_steps().state)


@pytest.mark.parametrize("name", ["features/pooled/c/1/0/0", "frame_hash/c/1/0"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_to_a_shard_costs_its_own_unit_alone(tmp_path, name, damage):
    store = complete_store(tmp_path / "s.zarr", LENGTHS, rows_per_unit=ROWS_PER_UNIT)
    path = store.path / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    assert store.valid_units() == {0}
    with pytest.raises(StoreError):
        store.check_unit(1)


def test_a_store_whose_files_are_not_of_the_size_it_names_is_refused(tmp_path):
    store = create_store(tmp_path / "s.zarr", LENGTHS, rows_per_unit=ROWS_PER_UNIT)
    fill_store(store)
    larger = store.attributes.model_copy(update={"rows_per_unit": 2 * ROWS_PER_UNIT})
    replace_attributes(store, larger)
    with pytest.raises(StoreError, match=r"1024 rows per file, found .* 512 rows"):
        FeatureStore.open(store.path, allow_incomplete=True)


def test_the_size_of_a_dataset_chooses_and_a_store_keeps_its_choice(tmp_path):
    pooled, grids = 3 * 2 * 768, 3 * 2 * (8 * 8 * 112 + 768)  # bytes of a step of three views
    assert choose_rows_per_unit(1_000, 1_000, pooled) == CHUNK_ROWS
    assert choose_rows_per_unit(1_001, 1_000, pooled) == SHARD_ROWS
    large = choose_rows_per_unit(1_001, 1_000, grids)
    assert large % CHUNK_ROWS == 0
    assert large * grids <= SHARD_BYTES < (large + CHUNK_ROWS) * grids
    assert choose_rows_per_unit(1_001, 1_000, 10**9) == CHUNK_ROWS
    manifest, store = write_still_life(tmp_path, (CHUNK_ROWS, 9)), tmp_path / "s.zarr"
    settings = {"manifest": manifest, "store": store, "encoder": tiny_tower()}
    embed_dataset(EmbedConfig(**settings, shard_above=100))
    digest = FeatureStore.open(store).digest()
    assert FeatureStore.open(store).attributes.rows_per_unit == SHARD_ROWS
    (store / "commits/000000.json").unlink()
    embed_dataset(EmbedConfig(**settings))  # goes on with the store there is
    assert FeatureStore.open(store).digest() == digest
    assert chunk_files(store, "features/pooled") == ["0"]
