"""Damage to a store on the disk: each is reported by its array, none is read as data."""

import random
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.features.identity.source import SOURCE_NOTE, SourceNote, write_source
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import mark_complete, verify_checksums
from pipeline.features.store.layout import START_ARRAYS
from pipeline.features.store.records import COMPLETE_MARK
from pipeline.features.store.steps import STEP_ARRAYS
from pipeline.storage.local import LocalFolder
from tests.pipeline.tiny import (
    complete_store,
    create_store,
    fill_store,
    tiny_identity,
    tiny_start_frames,
)

NUM_DAMAGES = 1_000
SHAPES = {"pooled": (96,), "grid": (2, 2, 8)}
BASES = {"grid": np.arange(12, dtype=np.float32).reshape(4, 3)}
REPORTED = {
    r"(.*/)?zarr\.json": r"{file}: is missing or was changed",
    r"features/(\w+)/c/.*": r"features/\1, unit 0: ",
    r"frame_hash/c/.*": r"frame_hash, unit 0: ",
    r"commits/000000\.json": r"commit record of unit 0: ",
    r"(state|action|timestamp|episode_ends|start_frames|start_episodes)/c/.*": r"\1: ",
    r"(probe|bases/grid)/.*": r"\1: ",
    r"COMPLETE\.json": r"{file}: ",
    r"source\.json": r".*/{file}: ",
}
"""What names the damage of a file, by the file's pattern; the first that fits."""

pytestmark = pytest.mark.usefixtures("unchecked")  # in a thousand readings


def unfinished_store(path: Path, **settings) -> FeatureStore:
    """Every unit is written, and every array that a store may hold is there; it has no mark."""
    identity = tiny_identity(shapes=SHAPES)
    store = create_store(path, (3, 2), identity=identity, bases=BASES, **settings)
    fill_store(store)
    store.write_start_frames(tiny_start_frames(2))
    return store


def whole_store(path: Path, **settings) -> FeatureStore:
    store = unfinished_store(path, **settings)
    write_source(LocalFolder(path), SourceNote(manifest=Path("/data/tiny.toml"), stamp="0" * 64))
    mark_complete(store)
    return store


def report_of(file: str) -> str:
    """Return the pattern of the line that reports damage to a file."""
    for pattern, line in REPORTED.items():
        if found := re.fullmatch(pattern, file):
            return found.expand(line).format(file=re.escape(file))
    raise AssertionError(file)


def damage(path: Path, content: bytes | None) -> None:
    path.unlink() if content is None else path.write_bytes(content)


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


def readings(store: FeatureStore, name: str) -> list[object]:
    """All that a reader can learn from a file of a store, and from the store's own records."""
    arrays: dict[str, Callable[[], Iterable[np.ndarray]]] = {
        "features": lambda: map(store.read_features, SHAPES),
        "frame_hash": lambda: map(store.read_unit_hashes, range(store.num_units)),
        "bases": lambda: store.read_bases().values(),
        **dict.fromkeys(STEP_ARRAYS, lambda: vars(store.read_steps()).values()),
    }
    digests: dict[str, Callable[[], str]] = {
        "probe": lambda: store.read_probe().digest(),
        **dict.fromkeys(START_ARRAYS, lambda: store.read_start_frames().digest()),
    }
    folder = name.partition("/")[0]
    every = folder not in arrays | digests
    return [
        store.attributes,
        store.digest(),
        *(read() for known, read in digests.items() if every or known == folder),
        *(
            array.tobytes()
            for known, read in arrays.items()
            if every or known == folder
            for array in read()
        ),
    ]


def test_every_damage_is_reported_by_what_it_is_of_and_none_is_read_as_data(tmp_path):
    store = whole_store(tmp_path / "s.zarr", codec="blosc")
    files = files_of(store.path)
    expected = {name: readings(store, name) for name in files}
    for name, damaged in random_damages(files):
        damage(store.path / name, damaged)
        if (name, damaged) == (COMPLETE_MARK, None):
            with pytest.raises(IncompleteStoreError):
                verify_checksums(store.path)
        elif (name, damaged) == (SOURCE_NOTE, None):  # a published store may lack it
            assert not verify_checksums(store.path).damaged
        else:
            [line] = verify_checksums(store.path).damaged
            assert re.match(report_of(name), line), (name, line)
        with suppress(StoreError):  # refused, which is as good
            assert readings(FeatureStore.open(store.path), name) == expected[name], name
        (store.path / name).write_bytes(files[name])
    assert not verify_checksums(store.path).damaged


def test_lost_ends_of_episodes_are_a_store_error(tmp_path):
    """zarr would read the fill value, -1."""
    store = complete_store(tmp_path / "s.zarr", (4,))
    (store.path / "episode_ends/c/0").unlink()
    with pytest.raises(StoreError, match="episode_ends: differs from what was embedded"):
        store.read_episode_ends()


def test_damage_in_an_unfinished_store_is_a_store_error_or_a_unit_to_encode_again(tmp_path):
    store = unfinished_store(tmp_path / "s.zarr", codec="blosc")
    files = files_of(store.path)
    features = {name: store.read_features(name).tobytes() for name in SHAPES}
    for name, damaged in islice(random_damages(files), 90):
        damage(store.path / name, damaged)
        with suppress(StoreError):
            held = FeatureStore.open(store.path, allow_incomplete=True)
            for unit in held.valid_units():
                found = held.read_unit_features(unit)
                assert {name: rows.tobytes() for name, rows in found.items()} == features, name
        (store.path / name).write_bytes(files[name])


@pytest.mark.parametrize("codec", ["none", "blosc"])
def test_a_whole_store_has_no_damage_and_both_codecs_keep_every_bit(tmp_path, codec):
    store = whole_store(tmp_path / "s.zarr", codec=codec)
    report = verify_checksums(store.path)
    assert not report.damaged
    assert "1 units: all intact" in report.summary()
    plain = whole_store(tmp_path / "plain.zarr")
    for name in SHAPES:
        np.testing.assert_array_equal(store.read_features(name), plain.read_features(name))


def test_files_that_are_no_part_of_the_store_are_no_damage(tmp_path):
    """Neither a reader's own nor what a write that was killed left."""
    store = whole_store(tmp_path / "s.zarr")
    (store.path / "README").write_text("mine")
    (store.path / "features/pooled/c/0/0/0.abc.partial").write_text("")
    assert not verify_checksums(store.path).damaged


def test_a_mark_of_another_store_is_reported(tmp_path):
    """Each is whole by itself and describes the same arrays, but they do not belong together."""
    store = whole_store(tmp_path / "a.zarr")
    other = complete_store(
        tmp_path / "b.zarr", (2, 3), identity=tiny_identity(shapes=SHAPES), bases=BASES
    )
    (store.path / COMPLETE_MARK).write_bytes((other.path / COMPLETE_MARK).read_bytes())
    assert [line.split(":")[0] for line in verify_checksums(store.path).damaged] == [
        "timestamp",
        "episode_ends",
    ]


def test_a_store_that_is_absent_or_incomplete_has_no_checksums(tmp_path):
    with pytest.raises(StoreError, match="expected a feature store, found none"):
        verify_checksums(tmp_path)
    store = create_store(tmp_path / "s.zarr", (3,))
    with pytest.raises(IncompleteStoreError, match="run the same vla-embed"):
        verify_checksums(store.path)
