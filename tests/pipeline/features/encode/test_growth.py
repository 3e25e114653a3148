"""A dataset that changes: only its new frames are encoded, and the store is what a fresh one is."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import FailedUnitsError, StoreError
from pipeline.features.encode.embed import EmbedConfig, EmbedReport, embed_dataset
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.units import CHUNK_ROWS
from tests.pipeline.features.encode.drivers import write_one_view
from tests.pipeline.features.still_life import (
    break_frame,
    picture,
    write_still_episode,
    write_still_life,
)
from tests.pipeline.tiny import VIEWS, write_dataset
from tests.tower import load, tiny_tower

NUM_VIEWS = len(VIEWS)


def embed(manifest: Path, store: Path) -> EmbedReport:
    return embed_dataset(EmbedConfig(manifest=manifest, store=store, encoder=tiny_tower()))


def content(store: Path) -> tuple[np.ndarray, ...]:
    opened = FeatureStore.open(store)
    steps = opened.read_steps()
    arrays = opened.read_features("pooled"), frame_hashes(opened)
    return *arrays, steps.state, steps.action, steps.timestamp, steps.episode_ends


def assert_same_content(first: Path, second: Path) -> None:
    for ours, theirs in zip(content(first), content(second), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def frame_hashes(store: FeatureStore) -> np.ndarray:
    return np.concatenate([store.read_unit_hashes(unit) for unit in range(store.num_units)])


def records(store: Path) -> dict[str, tuple[int, bytes]]:
    """Every commit record: when it was written, and what it says."""
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in (store / "commits").glob("*.json")
    }


def test_equal_frames_are_encoded_once_to_the_bits_of_a_live_pass(tmp_path):
    report = embed(write_still_life(tmp_path, (6, 5)), tmp_path / "s.zarr")
    assert (report.counts.encoded, report.counts.repeated, report.counts.copied) == (4, 29, 0)
    features = FeatureStore.open(tmp_path / "s.zarr").read_features("pooled")
    encoder = load(tiny_tower())
    for row, (episode, step) in enumerate([(0, t) for t in range(6)] + [(1, t) for t in range(5)]):
        frames = np.stack([picture((episode + step + view) % 4) for view in range(NUM_VIEWS)])
        live = encoder.encode_views(frames[None])["pooled"][0]
        np.testing.assert_array_equal(features[row], live)


def test_an_added_episode_is_encoded_and_nothing_else(tmp_path):
    manifest, store = write_dataset(tmp_path, (4, 3)), tmp_path / "s.zarr"
    embed(manifest, store)
    third = write_dataset(tmp_path / "other", (4, 3, 2)).parent / "data" / "episode_2.hdf5"
    third.rename(manifest.parent / "data" / "episode_2.hdf5")
    report = embed(manifest, store)
    assert (report.counts.encoded, report.counts.copied) == (2 * NUM_VIEWS, 7 * NUM_VIEWS)
    embed(manifest, tmp_path / "fresh.zarr")
    assert_same_content(store, tmp_path / "fresh.zarr")
    assert sorted(path.name for path in tmp_path.glob(".s.zarr*")) == []


def test_a_removed_episode_needs_no_encoding(tmp_path):
    manifest, store = write_dataset(tmp_path, (4, 3)), tmp_path / "s.zarr"
    embed(manifest, store)
    (manifest.parent / "data" / "episode_0.hdf5").unlink()
    report = embed(manifest, store)
    assert (report.counts.encoded, report.counts.copied) == (0, 3 * NUM_VIEWS)
    embed(manifest, tmp_path / "fresh.zarr")
    assert_same_content(store, tmp_path / "fresh.zarr")


def test_ten_changed_frames_rewrite_the_units_they_touch(tmp_path):
    """10 episodes of 60 steps are 3 units; episode 5 begins in the second."""
    manifest, store = write_one_view(tmp_path, (60,) * 10), tmp_path / "s.zarr"
    embed(manifest, store)
    before = records(store)
    write_still_episode(manifest.parent / "data", 5, 60, {t: 50 + t for t in range(1, 11)})
    report = embed(manifest, store)
    after = records(store)
    assert [name for name in before if after[name] != before[name]] == ["000001.json"]
    assert 5 * 60 // CHUNK_ROWS == (5 * 60 + 59) // CHUNK_ROWS == 1
    assert 10 <= report.counts.encoded <= 10 + 4  # the pictures of the unit that were there before
    embed(manifest, tmp_path / "fresh.zarr")
    assert_same_content(store, tmp_path / "fresh.zarr")


def test_a_touched_file_is_compared_and_nothing_is_encoded(tmp_path):
    manifest, store = write_dataset(tmp_path, (4, 3)), tmp_path / "s.zarr"
    embed(manifest, store)
    digest = FeatureStore.open(store).digest()
    os.utime(manifest.parent / "data" / "episode_0.hdf5")
    report = embed(manifest, store)
    assert report.counts.encoded == report.counts.copied == 0
    assert report.seconds["compare"] > 0
    assert embed(manifest, store).seconds["compare"] == 0
    assert FeatureStore.open(store).digest() == digest


@pytest.mark.parametrize("renames", [1, 2])
def test_growth_that_was_cut_off_at_its_end_is_finished(tmp_path, renames):
    """Killed between the two renames, or before the old store was removed."""
    manifest, store = write_dataset(tmp_path, (4, 3)), tmp_path / "s.zarr"
    embed(manifest, store)
    embed(manifest, tmp_path / "grown.zarr")
    store.rename(tmp_path / ".s.zarr.outgrown")
    (tmp_path / "grown.zarr").rename(tmp_path / ".s.zarr.growing" if renames == 1 else store)
    report = embed(manifest, store)
    assert report.counts.encoded == 0
    assert sorted(path.name for path in tmp_path.glob(".s.zarr*")) == []


def test_a_store_of_another_manifest_is_left_alone(tmp_path):
    manifest, store = write_dataset(tmp_path, (4, 3)), tmp_path / "s.zarr"
    embed(manifest, store)
    before = content(store)
    manifest.write_text(manifest.read_text().replace('revision = "0"', 'revision = "1"'))
    with pytest.raises(StoreError, match="created with a different manifest"):
        embed(manifest, store)
    for ours, theirs in zip(content(store), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_broken_frame_stops_its_unit_alone(tmp_path):
    manifest, store = write_one_view(tmp_path, (CHUNK_ROWS, 20, CHUNK_ROWS)), tmp_path / "s.zarr"
    whole = manifest.parent / "data" / "episode_1.hdf5"
    healthy = whole.read_bytes()
    break_frame(whole, "top", 7)
    with pytest.raises(FailedUnitsError) as refusal:
        embed(manifest, store)
    message = str(refusal.value)
    assert "1 of 3 units failed" in message
    assert "\n" not in message
    assert [reason.split(":")[0] for reason in refusal.value.reasons] == ["unit 1"]
    assert "episode_1.hdf5" in message
    assert "top" in message
    assert sorted(records(store)) == ["000000.json", "000002.json"]
    with pytest.raises(StoreError, match="after 2 of 3 units"):
        FeatureStore.open(store)
    before = records(store)
    whole.write_bytes(healthy)
    embed(manifest, store)
    assert all(records(store)[name] == before[name] for name in before)
    embed(manifest, tmp_path / "fresh.zarr")
    assert_same_content(store, tmp_path / "fresh.zarr")
