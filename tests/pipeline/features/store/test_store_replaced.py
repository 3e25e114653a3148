"""A store that changes under its readers: replaced, written, or with arrays of another shape."""

import json
import shutil
from collections.abc import Callable

import pytest

from pipeline.errors import StoreError
from pipeline.features.encode.target import replace_attributes
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import mark_complete
from pipeline.features.store.records import COMPLETE_MARK, discard_units
from pipeline.features.store.units import CHUNK_ROWS
from tests.pipeline.tiny import complete_store, create_store, fill_store

LENGTHS = (CHUNK_ROWS, 40, 10)


def with_unreplaced(store: FeatureStore, read: Callable[[], object]) -> None:
    with store.unreplaced():
        read()


def put_in_place(store: FeatureStore, other: FeatureStore) -> None:
    """Replace a store as one that has grown is replaced."""
    store.path.rename(store.path.with_name(".old"))
    other.path.rename(store.path)
    shutil.rmtree(store.path.with_name(".old"))


@pytest.mark.parametrize("lengths", [(CHUNK_ROWS, CHUNK_ROWS, 9), (4,)])
def test_a_store_that_was_replaced_since_it_was_opened_is_not_read(tmp_path, lengths):
    """Units of whole chunks: every record of the old rows fits the new store too."""
    complete_store(tmp_path / "s.zarr", (CHUNK_ROWS, CHUNK_ROWS))
    store = FeatureStore.open(tmp_path / "s.zarr")
    put_in_place(store, complete_store(tmp_path / "other.zarr", lengths))
    with pytest.raises(StoreError, match=r"store was replaced meanwhile, run the same command"):
        store.read_features("pooled")


@pytest.mark.parametrize("other", ["another store", "none", "incomplete"])
def test_what_was_read_while_a_store_was_replaced_is_refused(tmp_path, other):
    complete_store(tmp_path / "s.zarr", (4, 5))
    store = FeatureStore.open(tmp_path / "s.zarr")
    with store.unreplaced() as digest:
        store.read_features("pooled")
    assert digest == store.digest()

    def change() -> None:
        if other == "another store":  # of the same shape
            put_in_place(store, complete_store(tmp_path / "other.zarr", (5, 4)))
        elif other == "none":
            shutil.rmtree(store.path)
        else:
            discard_units(store.folder, [])
        store.read_features("pooled")

    with pytest.raises(StoreError, match=r"s\.zarr: the store was replaced"):
        with_unreplaced(store, change)


def test_damage_is_not_taken_for_a_replacement(tmp_path):
    store = complete_store(tmp_path / "s.zarr", (4, 5))
    (store.path / "commits/000000.json").unlink()
    with pytest.raises(StoreError, match="no commit record"), store.unreplaced():
        store.read_features("pooled")


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    store = create_store(tmp_path_factory.mktemp("filled") / "s.zarr", LENGTHS)
    fill_store(store)
    return store


@pytest.mark.parametrize(
    ("name", "changes", "found"),
    [
        (
            "features/pooled",
            {"shape": [300, 3, 768]},
            r"expected float16 \[306, 3, 768\], 256 rows per file, found .*300",
        ),
        ("features/pooled", {"shape": [306, 2, 768]}, r"found float16 \[306, 2, 768\]"),
        ("features/pooled", {"shape": []}, "s\\.zarr"),
        ("features/pooled", {"data_type": "float32"}, r"found float32 \[306, 3, 768\]"),
        ("features/pooled", {"node_type": "group"}, "s\\.zarr"),
        ("frame_hash", {"shape": [1, 3]}, r"expected uint64 \[306, 3\], .*, found uint64 \[1, 3\]"),
        ("frame_hash", {"data_type": "int64"}, "found int64"),
        ("state", {"shape": [306]}, "s\\.zarr"),
        ("state", {"shape": [9, 5]}, r"expected float16 \[9, 3, 768\]"),
    ],
)
def test_arrays_of_another_shape_or_dtype_are_a_store_error(filled, name, changes, found):
    path = filled.path / name / "zarr.json"
    held = path.read_text()
    metadata = json.loads(held) | changes
    if changes.get("node_type") == "group":
        metadata = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    path.write_text(json.dumps(metadata))
    try:
        with pytest.raises(StoreError, match=found) as caught:
            FeatureStore.open(filled.path, allow_incomplete=True)
    finally:
        path.write_text(held)
    assert "use another --store" in str(caught.value)


def test_a_complete_store_tells_any_change_of_its_metadata(tmp_path):
    store = complete_store(tmp_path / "s.zarr", (4, 5))
    for name in ("features/pooled", "frame_hash", "state"):
        path = store.path / name / "zarr.json"
        held = path.read_text()
        path.write_text(json.dumps(json.loads(held) | {"shape": [9]}))
        with pytest.raises(StoreError, match=r"zarr\.json.*embed into another"):
            FeatureStore.open(store.path, allow_incomplete=True)
        path.write_text(held)


def test_every_change_takes_the_mark_away(tmp_path):
    store = complete_store(tmp_path / "s.zarr", LENGTHS)
    changes = [
        lambda: fill_store(store, [1]),
        lambda: replace_attributes(store, store.attributes),
        lambda: discard_units(store.folder, []),
        lambda: (store.path / COMPLETE_MARK).write_text("{}"),
    ]
    for change in changes:
        change()
        assert not store.is_complete
        mark_complete(store)
        assert store.is_complete
