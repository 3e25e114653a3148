"""The store on a real disk: what counts as written, and what is never read as data."""

import json

import numpy as np
import pytest
import zarr

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.features.store import COMPLETE_MARK, FeatureStore
from pipeline.features.units import UNIT_ROWS
from tests.pipeline.tiny import (
    complete_store,
    create_store,
    fill_store,
    tiny_features,
    tiny_steps,
)

LENGTHS = (UNIT_ROWS, 40, 10)  # two units, the second one short, cut within no episode end
NUM_ROWS = sum(LENGTHS)


def test_features_and_steps_come_back_bit_for_bit(tmp_path):
    complete_store(tmp_path / "s.zarr", LENGTHS)

    store = FeatureStore.open(tmp_path / "s.zarr")

    np.testing.assert_array_equal(store.read_features(), tiny_features(NUM_ROWS))
    steps, expected = store.read_steps(), tiny_steps(LENGTHS)
    for name in ("state", "action", "timestamp", "episode_ends"):
        np.testing.assert_array_equal(getattr(steps, name), getattr(expected, name))


def test_other_zarr_readers_read_it(tmp_path):
    complete_store(tmp_path / "s.zarr", LENGTHS)
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    np.testing.assert_array_equal(group["features"][:], tiny_features(NUM_ROWS))
    assert group.attrs["view_names"] == ["front", "top", "r_vis"]


def test_a_chunk_is_the_raw_array_and_a_checksum(tmp_path):
    complete_store(tmp_path / "s.zarr", LENGTHS)
    content = (tmp_path / "s.zarr/features/c/0/0/0").read_bytes()
    assert content[:-4] == tiny_features(NUM_ROWS)[:UNIT_ROWS].tobytes()


def test_unwritten_rows_read_as_nan_and_never_as_zero(tmp_path):
    create_store(tmp_path / "s.zarr", LENGTHS)
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    assert np.isnan(group["features"][:]).all()


def test_an_incomplete_store_is_refused_and_says_how_far_it_is(tmp_path):
    store = create_store(tmp_path / "s.zarr", LENGTHS)
    fill_store(store, [1])
    with pytest.raises(IncompleteStoreError, match="1 of 2 units; run the same vla-embed"):
        FeatureStore.open(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match=r"unit 0\) have no commit record"):
        store.mark_complete()
    assert not (tmp_path / "s.zarr" / COMPLETE_MARK).exists()


def test_only_committed_units_are_valid(tmp_path):
    store = create_store(tmp_path / "s.zarr", LENGTHS)
    fill_store(store)
    (tmp_path / "s.zarr/commits/000001.json").unlink()
    assert store.valid_units() == {0}


@pytest.mark.parametrize("name", ["features/c/0/0/0", "frame_hash/c/0/0", "commits/000000.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_is_never_read_as_data(tmp_path, name, damage):
    store = complete_store(tmp_path / "s.zarr", LENGTHS)
    path = tmp_path / "s.zarr" / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()

    with pytest.raises(StoreError, match=r"rows 0\.\.256 \(unit 0\)|features|frame_hash"):
        store.read_features()
    assert store.valid_units() == {1}


def test_a_record_of_another_encoder_is_not_taken(tmp_path):
    store = complete_store(tmp_path / "s.zarr", LENGTHS)
    path = tmp_path / "s.zarr/commits/000000.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"fingerprint": "0" * 64}))
    assert store.valid_units() == {1}


def test_rewriting_a_unit_takes_the_complete_mark_away_first(tmp_path):
    store = complete_store(tmp_path / "s.zarr", LENGTHS)
    digest = store.digest()
    fill_store(store, [0])
    assert not store.is_complete
    store.mark_complete()
    assert store.digest() == digest


def test_features_that_are_not_finite_are_refused(tmp_path):
    store = create_store(tmp_path / "s.zarr", (4,))
    features = tiny_features(4)
    features[2, 1, 0] = np.inf
    with pytest.raises(StoreError, match="not finite"):
        store.write_unit(0, features, np.zeros((4, 3), np.uint64))


def test_creating_over_something_is_refused(tmp_path):
    create_store(tmp_path / "s.zarr", (4,))
    with pytest.raises(StoreError, match="holds something already"):
        create_store(tmp_path / "s.zarr", (4,))


def test_other_folders_and_newer_formats_are_refused(tmp_path):
    with pytest.raises(StoreError, match="no feature store here"):
        FeatureStore.open(tmp_path)
    zarr.create_group(tmp_path / "other.zarr", zarr_format=3)
    with pytest.raises(StoreError, match="not a feature store"):
        FeatureStore.open(tmp_path / "other.zarr")
    complete_store(tmp_path / "s.zarr", (4,))
    path = tmp_path / "s.zarr/zarr.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 3'))
    with pytest.raises(StoreError, match="version 3, this program reads"):
        FeatureStore.open(tmp_path / "s.zarr")


def replace_steps(store: FeatureStore, name: str, value: float) -> None:
    """Write into a finished store with another Zarr program: every checksum is right."""
    zarr.open_group(store.path, mode="r+")[name][0] = value


@pytest.mark.parametrize(
    ("name", "value"), [("state", np.nan), ("action", 0.5), ("episode_ends", 2), ("timestamp", 9.0)]
)
def test_steps_changed_after_completion_are_noticed(tmp_path, name, value):
    store = complete_store(tmp_path / "s.zarr", (4, 4))
    store.check_digest()
    replace_steps(store, name, value)
    with pytest.raises(StoreError, match="are not those that were embedded"):
        FeatureStore.open(store.path).check_digest()


@pytest.mark.parametrize("content", ["", "{}", "[1]"])
def test_a_damaged_complete_mark_marks_nothing(tmp_path, content):
    store = complete_store(tmp_path / "s.zarr", (4,))
    (store.path / COMPLETE_MARK).write_text(content)
    with pytest.raises(IncompleteStoreError, match="run the same"):
        FeatureStore.open(store.path)


@pytest.mark.parametrize("name", ["features", "state", "episode_ends"])
def test_a_missing_array_is_a_store_error(tmp_path, name):
    store = complete_store(tmp_path / "s.zarr", (4,))
    (store.path / name / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"s\.zarr"):
        FeatureStore.open(store.path).check_digest()


def test_an_empty_folder_becomes_a_store(tmp_path):
    (tmp_path / "s.zarr").mkdir()
    complete_store(tmp_path / "s.zarr", (4,))
    assert FeatureStore.open(tmp_path / "s.zarr").num_rows == 4


def test_the_digest_names_the_content(tmp_path):
    digests = {
        complete_store(tmp_path / "a.zarr", (4, 5)).digest(),
        complete_store(tmp_path / "b.zarr", (4, 5)).digest(),
        complete_store(tmp_path / "c.zarr", (5, 4)).digest(),
    }
    assert len(digests) == 2
