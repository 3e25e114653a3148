"""Parts of a job array: commands that know nothing of each other fill one store.

Two at once are in tests/cli/test_launch.py, started by the script for Slurm.
"""

import os
import re

import pytest

from pipeline.errors import ConfigError, StoreError
from pipeline.features.encode.config import Part
from pipeline.features.encode.embed import embed_dataset
from pipeline.features.encode.target import hold_store
from pipeline.features.encode.unit_encoder import UnitEncoder
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import check_digest
from tests.pipeline.features.encode.drivers import (
    commits,
    configure,
    embed,
    store_bytes,
    write_one_view,
)
from tests.pipeline.features.still_life import write_still_episode

FIRST, SECOND = Part(1, 2), Part(2, 2)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    manifest = write_one_view(folder / "dataset")
    embed(manifest, folder / "s.zarr")
    return manifest, store_bytes(folder / "s.zarr")


@pytest.mark.parametrize("text", ["0/2", "3/2", "-1/2", "1/0", "1", "1/2/3", " 1/2", "1.0/2", ""])
def test_nonsense_is_refused(text):
    with pytest.raises(ConfigError, match=re.escape("--units: expected i/n with i from 1")):
        Part.parse(text)


@pytest.mark.parametrize(("total", "num_units"), [(1, 7), (3, 7), (8, 5), (4, 0), (40, 611)])
def test_every_unit_belongs_to_one_part_and_parts_differ_by_one_unit(total, num_units):
    parts = [Part.parse(f"{number}/{total}").units(num_units) for number in range(1, total + 1)]
    assert [unit for part in parts for unit in part] == list(range(num_units))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_part_writes_its_own_units_and_says_what_is_missing(embedded):
    """In a store that lies in the dataset's folder, and changes no file of the dataset."""
    manifest, expected = embedded
    store = manifest.parent / "data" / "s.zarr"
    report = embed(manifest, store, part=SECOND)
    assert "part 2/2 is done; 2 of 5 units are missing: 2 of part 1/2" in report.summary()
    assert sorted(commits(store)) == ["000002.json", "000003.json", "000004.json"]
    assert not FeatureStore.open(store, allow_incomplete=True).is_complete
    kept = commits(store)
    assert "missing" not in embed(manifest, store, part=FIRST).summary()
    assert kept.items() <= commits(store).items()
    assert store_bytes(store) == expected


def test_the_part_that_ends_last_marks_what_another_has_changed(tmp_path, monkeypatch):
    manifest, store = write_one_view(tmp_path / "dataset"), tmp_path / "s.zarr"
    encode = UnitEncoder.encode

    def encode_after_another_part(*arguments):
        monkeypatch.undo()
        manifest.write_text(f"splits = {{ validation = [0] }}\n{manifest.read_text()}")
        assert "units are missing" in embed(manifest, store, part=SECOND).summary()
        return encode(*arguments)

    monkeypatch.setattr(UnitEncoder, "encode", encode_after_another_part)
    embed(manifest, store, part=FIRST)
    check_digest(FeatureStore.open(store))


def test_a_part_and_a_command_without_one_keep_each_other_out(embedded, tmp_path):
    manifest, _ = embedded
    store = tmp_path / "s.zarr"
    with hold_store(store, FIRST):
        with hold_store(store, SECOND):
            pass
        with pytest.raises(StoreError, match="another process is writing here"):
            embed(manifest, store)
    with hold_store(store, None), pytest.raises(StoreError, match="another process"):
        embed(manifest, store, part=FIRST)
    assert not store.exists()


def test_a_part_neither_grows_a_store_nor_mixes_files(tmp_path):
    manifest, store = write_one_view(tmp_path / "dataset", (300,)), tmp_path / "s.zarr"
    embed(manifest, store, part=FIRST)
    path = manifest.parent / "data/episode_0.hdf5"
    before = path.stat()
    os.utime(path)
    with pytest.raises(
        StoreError,
        match=r"have changed since units were committed.*without "
        "--units",
    ):
        embed(manifest, store, part=SECOND)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    embed(manifest, store, part=SECOND)
    complete = store_bytes(store)

    write_still_episode(manifest.parent / "data", 1, 20)
    with pytest.raises(StoreError, match="run vla-embed without --units"):
        embed_dataset(configure(manifest, store, part=FIRST))
    assert store_bytes(store) == complete
