"""Damage to a store on the disk: each is reported with its file, none is read as data."""

import random
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.features.identity.source import SourceNote, write_source
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import mark_complete, verify_checksums
from pipeline.features.store.records import COMPLETE_MARK, FILE_LIST
from pipeline.storage.local import LocalFolder
from tests.pipeline.tiny import create_store, fill_store

NUM_DAMAGES = 1_000


def whole_store(path: Path, **settings) -> FeatureStore:
    """A complete store with every file that one may hold."""
    store = create_store(path, (3, 2), **settings)
    write_source(LocalFolder(path), SourceNote(manifest=Path("/data/tiny.toml"), stamp="0" * 64))
    fill_store(store)
    mark_complete(store)
    return store


def files_of(store: Path) -> dict[str, bytes]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def random_damages(files: dict[str, bytes]) -> Iterator[tuple[str, bytes | None]]:
    """Every file in turn: a flipped bit, a truncation or a deletion, at a random place."""
    numbers = random.Random(3)
    names = sorted(files)
    for number in range(NUM_DAMAGES):
        name = names[number % len(names)]
        content = files[name]
        kind = numbers.choice(["flip", "flip", "truncate", "delete"])
        if kind == "flip":
            flipped = bytearray(content)
            flipped[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
            yield name, bytes(flipped)
        else:
            yield name, content[: numbers.randrange(len(content))] if kind == "truncate" else None


def everything(store: FeatureStore) -> list[object]:
    """All that a reader can learn of a store."""
    probe, steps = store.read_probe(), store.read_steps()
    hashes = [store.read_unit_hashes(unit) for unit in range(store.num_units)]
    arrays = [*vars(steps).values(), store.read_features("pooled"), *hashes]
    return [
        store.attributes,
        probe.digest(),
        store.read_start_frames().digest(),
        store.digest(),
        *(array.tobytes() for array in arrays),
    ]


def test_every_damage_is_reported_with_its_file_and_none_is_read_as_data(tmp_path):
    store = whole_store(tmp_path / "s.zarr", codec="blosc")
    files = files_of(store.path)
    expected = everything(store)
    assert {"source.json", "zarr.json", "commits/000000.json", "probe/frames/zarr.json"} < set(
        files
    )
    for name, damaged in random_damages(files):
        path = store.path / name
        path.unlink() if damaged is None else path.write_bytes(damaged)
        found = [file.name for file in verify_checksums(store.path).damaged]
        assert found == [name], (name, found)
        with suppress(StoreError):  # refused, which is as good
            assert everything(FeatureStore.open(store.path)) == expected, name
        path.write_bytes(files[name])
    report = verify_checksums(store.path)
    assert not report.damaged
    assert (report.num_files, report.num_bytes) == (len(files), sum(map(len, files.values())))


def test_damage_in_an_unfinished_store_is_a_store_error_or_a_unit_to_encode_again(tmp_path):
    store = create_store(tmp_path / "s.zarr", (3, 2), codec="blosc")
    fill_store(store)
    files, features = files_of(store.path), store.read_features("pooled").tobytes()
    for name, damaged in islice(random_damages(files), 300):
        path = store.path / name
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with suppress(StoreError):
            held = FeatureStore.open(store.path, allow_incomplete=True)
            for unit in held.valid_units():
                assert held.read_unit_feature(unit, "pooled").tobytes() == features, name
        path.write_bytes(files[name])


@pytest.mark.parametrize("codec", ["none", "blosc"])
def test_a_whole_store_has_no_damage_and_both_codecs_keep_every_bit(tmp_path, codec):
    store = whole_store(tmp_path / "s.zarr", codec=codec)
    report = verify_checksums(store.path)
    assert not report.damaged
    assert not report.extra
    assert "all whole" in report.summary()
    plain = whole_store(tmp_path / "plain.zarr")
    np.testing.assert_array_equal(store.read_features("pooled"), plain.read_features("pooled"))


def test_files_that_are_no_part_of_the_store_are_a_note(tmp_path):
    store = whole_store(tmp_path / "s.zarr")
    (store.path / "README").write_text("mine")
    (store.path / "features/c/0/0/0.abc.partial").write_text("")
    report = verify_checksums(store.path)
    assert not report.damaged
    assert report.extra == ("README", "features/c/0/0/0.abc.partial")
    assert "a write that was killed left it" in report.summary()


def test_leftovers_of_a_killed_write_do_not_enter_the_list(tmp_path):
    store = create_store(tmp_path / "s.zarr", (3,))
    fill_store(store)
    (store.path / "features/c/0/0/0.abc.partial").write_text("")
    mark_complete(store)
    (store.path / "features/c/0/0/0.abc.partial").unlink()
    assert not verify_checksums(store.path).damaged


def test_a_list_of_another_time_is_reported(tmp_path):
    """Both files are whole by themselves, but they do not belong together."""
    store, other = whole_store(tmp_path / "a.zarr"), create_store(tmp_path / "b.zarr", (7,))
    fill_store(other)
    mark_complete(other)
    (store.path / FILE_LIST).write_bytes((other.path / FILE_LIST).read_bytes())
    damaged = verify_checksums(store.path).damaged
    assert (damaged[0].name, damaged[0].problem) == (
        FILE_LIST,
        f"is not the list that {COMPLETE_MARK} names",
    )
    with pytest.raises(IncompleteStoreError):
        FeatureStore.open(store.path)


def test_a_store_that_is_absent_or_incomplete_has_no_checksums(tmp_path):
    with pytest.raises(StoreError, match="no feature store here"):
        verify_checksums(tmp_path)
    store = create_store(tmp_path / "s.zarr", (3,))
    with pytest.raises(IncompleteStoreError, match="run the same vla-embed"):
        verify_checksums(store.path)
