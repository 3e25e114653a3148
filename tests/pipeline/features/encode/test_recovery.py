"""What crashes, links and damage leave behind: never stale features, never a dead end."""

import os
from pathlib import Path

import pytest

import pipeline.features.encode.unit_encoder
from pipeline.errors import FailedUnitsError
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.identity.source import files_stamp, read_source, write_source
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.units import CHUNK_ROWS
from pipeline.storage.local import LocalFolder
from tests.pipeline.features.encode.drivers import write_one_view
from tests.pipeline.features.encode.test_growth import assert_same_content, embed, records
from tests.pipeline.features.still_life import break_frame, write_still_episode
from tests.pipeline.tiny import VIEWS, write_dataset
from tests.tower import tiny_tower

NUM_VIEWS = len(VIEWS)


def leftovers(store: Path) -> list[str]:
    return sorted(path.name for path in store.parent.glob(f".{store.name}*"))


def stop_after_one_unit(monkeypatch) -> None:
    """Let the next embedding die after its first commit, as if it were killed."""
    write, written = FeatureStore.write_unit, []

    def write_one(self, unit, *rest):
        if written:
            raise KeyboardInterrupt
        written.append(unit)
        write(self, unit, *rest)

    monkeypatch.setattr(pipeline.features.encode.unit_encoder.FeatureStore, "write_unit", write_one)


def _disk_full(*_: object) -> None:
    raise OSError("disk full")


def test_files_behind_linked_folders_are_part_of_the_stamp(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_bytes(b"a")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "camera").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    before = files_stamp([tmp_path / "data"], tmp_path / "s.zarr")
    (tmp_path / "elsewhere" / "a").write_bytes(b"b")
    os.utime(tmp_path / "elsewhere" / "a", ns=(0, 0))
    assert files_stamp([tmp_path / "data"], tmp_path / "s.zarr") != before


def test_a_damaged_unit_that_comes_back_from_a_backup_is_not_taken_for_new(tmp_path, monkeypatch):
    manifest, store = write_one_view(tmp_path, (CHUNK_ROWS, 20)), tmp_path / "s.zarr"
    embed(manifest, store)
    chunk = store / "features/pooled/c/1/0/0"
    healthy = chunk.read_bytes()
    chunk.write_bytes(b"\0" * len(healthy))
    write_still_episode(manifest.parent / "data", 1, 20, {3: 40})
    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "write_unit", _disk_full)
        with pytest.raises(OSError, match="disk full"):
            embed(manifest, store)
    chunk.write_bytes(healthy)
    assert embed(manifest, store).counts.encoded > 0
    embed(manifest, tmp_path / "fresh.zarr")
    assert_same_content(store, tmp_path / "fresh.zarr")


@pytest.mark.parametrize("change", ["a word", "one more episode"])
def test_growth_that_was_stopped_keeps_what_it_had_committed(tmp_path, monkeypatch, change):
    manifest, store = write_one_view(tmp_path, (10,)), tmp_path / "s.zarr"
    data = manifest.parent / "data"
    embed(manifest, store)
    write_still_episode(data, 1, CHUNK_ROWS, {t: 30 + t % 5 for t in range(CHUNK_ROWS)})
    with monkeypatch.context() as patch:
        stop_after_one_unit(patch)
        with pytest.raises(KeyboardInterrupt):
            embed(manifest, store)
    assert leftovers(store) == [".s.zarr.growing"]
    if change == "a word":
        manifest.write_text(manifest.read_text().replace("random numbers", "a die"))
    else:
        write_still_episode(data, 2, 4)
    report = embed(manifest, store)
    assert report.counts.encoded == 0  # the five pictures were in the unit that was committed
    assert leftovers(store) == []
    embed(manifest, tmp_path / "fresh.zarr")
    assert_same_content(store, tmp_path / "fresh.zarr")


def test_growth_is_given_up_where_the_dataset_is_the_old_one_again(tmp_path, monkeypatch):
    manifest, store = write_one_view(tmp_path, (10,)), tmp_path / "s.zarr"
    embed(manifest, store)
    added = write_still_episode(manifest.parent / "data", 1, CHUNK_ROWS)
    with monkeypatch.context() as patch:
        stop_after_one_unit(patch)
        with pytest.raises(KeyboardInterrupt):
            embed(manifest, store)
    added.unlink()
    assert embed(manifest, store).counts.encoded == 0
    assert leftovers(store) == []


@pytest.mark.parametrize("left", ["growing", "outgrown alone"])
def test_what_a_crash_leaves_is_no_dead_end(tmp_path, left):
    manifest, store = write_dataset(tmp_path, (4, 3)), tmp_path / "s.zarr"
    embed(manifest, store)
    if left == "growing":  # a part of a folder that was being removed
        (tmp_path / ".s.zarr.growing" / "features").mkdir(parents=True)
        (manifest.parent / "data" / "episode_0.hdf5").unlink()
    else:
        store.rename(tmp_path / ".s.zarr.outgrown")
    assert embed(manifest, store).counts.encoded == 0
    assert leftovers(store) == []


def test_a_store_behind_a_link_grows_where_it_lies(tmp_path):
    manifest = write_dataset(tmp_path, (4, 3))
    (tmp_path / "large").mkdir()
    link = tmp_path / "s.zarr"
    link.symlink_to(tmp_path / "large" / "s.zarr")
    embed(manifest, link)
    (manifest.parent / "data" / "episode_0.hdf5").unlink()
    assert embed(manifest, link).counts.copied == 3 * NUM_VIEWS
    assert link.is_symlink()
    assert FeatureStore.open(link).num_rows == 3
    assert leftovers(tmp_path / "large" / "s.zarr") == []


def test_a_broken_first_frame_stops_its_unit_and_not_the_probe(tmp_path):
    manifest, store = write_one_view(tmp_path, (CHUNK_ROWS, 20)), tmp_path / "s.zarr"
    path = manifest.parent / "data" / "episode_0.hdf5"
    healthy = path.read_bytes()
    break_frame(path, "top", 0)
    with pytest.raises(FailedUnitsError, match="1 of 2 units failed"):
        embed(manifest, store)
    assert sorted(records(store)) == ["000001.json"]
    path.write_bytes(healthy)
    embed(manifest, store)
    assert FeatureStore.open(store).is_complete


def test_a_frame_that_broke_later_does_not_hide_another_change(tmp_path):
    manifest, store = write_one_view(tmp_path, (CHUNK_ROWS, 9)), tmp_path / "s.zarr"
    embed(manifest, store)
    data = manifest.parent / "data"
    healthy = (data / "episode_0.hdf5").read_bytes()
    before = records(store)["000000.json"]
    break_frame(data / "episode_0.hdf5", "top", 5)
    write_still_episode(data, 1, 9, {7: 50})
    for _ in range(2):
        with pytest.raises(FailedUnitsError, match=r"1 of 2 units failed.*episode_0"):
            embed(manifest, store)
        assert sorted(records(store)) == ["000000.json", "000001.json"]
        assert not FeatureStore.open(store, allow_incomplete=True).is_complete

    (data / "episode_0.hdf5").write_bytes(healthy)  # as where a disk had failed
    report = embed(manifest, store)
    assert report.seconds["compare"] > 0
    assert report.counts.encoded == 0
    assert records(store)["000000.json"] == before
    assert FeatureStore.open(store).is_complete


def test_variants_stay_where_episodes_before_them_go(tmp_path):
    manifest, store = write_dataset(tmp_path, (2, 3, 2)), tmp_path / "s.zarr"
    config = EmbedConfig(manifest=manifest, store=store, encoder=tiny_tower(), num_variants=1)
    embed_dataset(config)
    (manifest.parent / "data" / "episode_0.hdf5").unlink()
    counts = embed_dataset(config).counts
    assert (counts.encoded, counts.copied) == (0, 5 * NUM_VIEWS * 2)


def test_the_note_of_other_decoders_means_comparing(tmp_path):
    manifest, store = write_dataset(tmp_path, (4, 3)), tmp_path / "s.zarr"
    embed(manifest, store)
    folder = LocalFolder(store)
    note = read_source(folder)
    write_source(folder, note.model_copy(update={"stamp": "0" * 64}))
    report = embed(manifest, store)
    assert report.seconds["compare"] > 0
    assert report.counts.encoded == 0
    assert read_source(folder) == note
