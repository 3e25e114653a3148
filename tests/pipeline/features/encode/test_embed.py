"""Embedding real HDF5 files with a tiny encoder: the same bits as live, resumable, strict."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DatasetError, EncoderMismatchError, FailedUnitsError, StoreError
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.identity.source import SOURCE_NOTE, read_source
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import check_digest
from pipeline.storage.local import LocalFolder, sibling
from pipeline.storage.locks import sole_writer
from policy.errors import DeviceError
from policy.images import resize_images
from tests.pipeline.features.still_life import break_frame
from tests.pipeline.tiny import VIEWS, write_dataset
from tests.tower import load, tiny_tower

GRAY = np.full((3, 256, 256, 3), 7, np.uint8)  # HDF5 takes a second per frame to spread a number


def embed(manifest: Path, store: Path, **settings):
    return embed_dataset(
        EmbedConfig(manifest=manifest, store=store, encoder=tiny_tower(), **settings)
    )


def recorded_frames(manifest: Path, episode: int) -> np.ndarray:
    with h5py.File(manifest.parent / f"data/episode_{episode}.hdf5") as file:
        return np.stack([file[f"observations/images/{view}"][:] for view in VIEWS], axis=1)


def store_bytes(store: Path) -> dict[str, bytes]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and path.name != SOURCE_NOTE  # says where the dataset lies
    }


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    manifest = write_dataset(folder)
    report = embed(manifest, folder / "s.zarr")
    return manifest, folder / "s.zarr", report


def test_a_store_goes_on_with_the_dtype_that_it_has(embedded, tmp_path):
    """Also where the machine would choose another one."""
    for dtype in ("float32", "bfloat16"):
        embed(embedded[0], tmp_path / dtype, compute_dtype=dtype)
        assert embed(embedded[0], tmp_path / dtype).counts.encoded == 0


@pytest.fixture
def copied(embedded, tmp_path):
    manifest, store, _ = embedded
    shutil.copytree(manifest.parent, tmp_path / "copy")
    return tmp_path / "copy" / manifest.name, tmp_path / "copy" / store.name


def test_cached_features_equal_live_ones_bit_for_bit(embedded):
    """The heart of the project: live frames, alone and in any order, against the store."""
    manifest, store, report = embedded
    cached = FeatureStore.open(store).read_features("pooled")
    live_encoder = load(tiny_tower())
    frames = np.concatenate([recorded_frames(manifest, episode) for episode in (0, 1)])
    for row in (7, 0, 3):
        live = live_encoder.encode_views(resize_images(frames[row])[None])["pooled"]
        np.testing.assert_array_equal(live[0], cached[row])
    assert (report.num_episodes, report.num_steps, report.counts.encoded) == (2, 8, 24)


def test_a_second_run_encodes_nothing_and_changes_nothing(copied):
    manifest, store = copied
    before = store_bytes(store)
    assert embed(manifest, store).counts.encoded == 0
    assert store_bytes(store) == before


@pytest.mark.parametrize("lost", ["commits/000000.json", "features/pooled/c/0/0/0"])
def test_a_lost_unit_is_encoded_again_to_the_same_bytes(copied, lost):
    manifest, store = copied
    before = store_bytes(store)
    (store / lost).unlink()
    assert embed(manifest, store).counts.encoded == 24
    assert store_bytes(store) == before


def test_another_encoder_is_refused(copied):
    manifest, store = copied
    held = FeatureStore.open(store).attributes.encoder.compute_dtype
    other = "float32" if held == "bfloat16" else "bfloat16"
    before = store_bytes(store)
    with pytest.raises(EncoderMismatchError, match=f"{held}, fingerprint"):
        embed(manifest, store, compute_dtype=other)
    assert store_bytes(store) == before


def test_numbers_that_changed_reach_the_store_without_encoding_anew(copied):
    manifest, store = copied
    digest = FeatureStore.open(store).digest()
    with h5py.File(manifest.parent / "data/episode_1.hdf5", "r+") as file:
        file["action"][0, 0] += 1
        action = file["action"][:]
    counts = embed(manifest, store).counts
    assert (counts.encoded, counts.copied) == (0, 24)
    np.testing.assert_array_equal(FeatureStore.open(store).read_steps().action[5:], action)
    assert FeatureStore.open(store).digest() != digest


def test_frames_that_changed_are_encoded_anew(copied):
    """State and action stay, a camera's pictures are replaced: no features of old frames."""
    manifest, store = copied
    with h5py.File(manifest.parent / "data/episode_1.hdf5", "r+") as file:
        file["observations/images/top"][...] = GRAY
    counts = embed(manifest, store).counts
    assert (counts.encoded, counts.repeated) == (22, 2)
    live = load(tiny_tower()).encode_views(recorded_frames(manifest, 1))["pooled"]
    np.testing.assert_array_equal(FeatureStore.open(store).read_features("pooled")[5:], live)


def test_a_dataset_that_moved_is_not_read_again(copied):
    manifest, store = copied
    held = read_source(LocalFolder(store))
    assert held.manifest != manifest
    assert embed(manifest, store).seconds["compare"] == 0
    assert read_source(LocalFolder(store)) == held.model_copy(update={"manifest": manifest})


def shrunk(frames: np.ndarray) -> np.ndarray:
    """The 8x8 block means that Pillow makes of every frame."""
    small = [
        np.asarray(Image.fromarray(frame).resize((32, 32), Image.Resampling.BOX))
        for frame in frames.reshape(-1, 256, 256, 3)
    ]
    return np.stack(small).reshape(*frames.shape[:-3], 32, 32, 3)


def test_the_first_frames_are_kept_small_and_follow_the_pictures(copied):
    manifest, store = copied
    for expected in ("as recorded", "replaced"):
        if expected == "replaced":
            with h5py.File(manifest.parent / "data/episode_1.hdf5", "r+") as file:
                file["observations/images/top"][...] = GRAY
            embed(manifest, store)
        held = FeatureStore.open(store).read_start_frames()
        assert held.episodes.tolist() == [0, 1]
        firsts = np.stack([recorded_frames(manifest, episode)[0] for episode in (0, 1)])
        assert np.abs(held.frames - shrunk(firsts).astype(int)).max() <= 1  # ties round otherwise


SPLIT = "splits = {validation = [1]}\n"


def test_a_split_reaches_the_store_without_encoding_anew(copied):
    manifest, store = copied
    before = FeatureStore.open(store)
    digest, features = before.digest(), before.read_features("pooled")
    assert before.attributes.validation is None
    [source] = before.attributes.sources
    assert (source.num_episodes, source.weight) == (2, 1.0)

    manifest.write_text(SPLIT + manifest.read_text())
    assert embed(manifest, store).counts.encoded == 0
    after = FeatureStore.open(store)
    check_digest(after)
    assert after.attributes.validation == (1,)
    assert after.attributes.manifest["splits"] == {"validation": [1]}
    assert after.digest() != digest  # a run on the other split does not resume
    np.testing.assert_array_equal(after.read_features("pooled"), features)
    content = store_bytes(store)
    assert embed(manifest, store).counts.encoded == 0
    assert store_bytes(store) == content

    manifest.write_text(manifest.read_text().replace(SPLIT, ""))
    embed(manifest, store)
    assert FeatureStore.open(store).digest() == digest


def test_words_of_the_manifest_change_nothing_in_a_store(copied):
    manifest, store = copied
    before = store_bytes(store)
    manifest.write_text(manifest.read_text().replace('"random numbers"', '"a die"'))
    embed(manifest, store)
    assert store_bytes(store) == before


def test_sources_and_their_weights_are_kept_in_the_store(tmp_path):
    manifest = write_dataset(tmp_path, lengths=(3, 2))
    text = manifest.read_text().replace('format = "aloha_hdf5"\npath = "data"\n', "")
    text += '[[sources]]\npath = "data"\nepisodes = {only = [1]}\n[[sources]]\npath = "data"\n'
    manifest.write_text(text)
    counts = embed(manifest, tmp_path / "s.zarr").counts
    assert (counts.encoded, counts.repeated) == (3 * (2 + 3), 3 * 2)

    manifest.write_text(text + "weight = 2.5\n")
    assert embed(manifest, tmp_path / "s.zarr").counts.encoded == 0
    store = FeatureStore.open(tmp_path / "s.zarr")
    sources = store.attributes.sources
    assert [(source.num_episodes, source.weight) for source in sources] == [(1, 1.0), (2, 2.5)]
    features, ends = store.read_features("pooled"), store.read_steps().episode_ends
    assert ends.tolist() == [2, 5, 7]
    np.testing.assert_array_equal(features[0:2], features[5:7])


def test_files_that_are_not_those_of_the_checksums_are_refused_before_anything_is_written(tmp_path):
    manifest = write_dataset(tmp_path, lengths=(2,))
    table = f'checksums = {{"episode_0.hdf5" = "{"0" * 64}"}}\n'
    manifest.write_text(table + manifest.read_text())
    with pytest.raises(DatasetError, match=r"episode_0\.hdf5: expected sha256 0000"):
        embed(manifest, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_two_processes_never_write_one_store(copied):
    manifest, store = copied
    (store / "commits/000000.json").unlink()
    held = sole_writer(store, StoreError, lock=sibling(store, "lock"))
    with held, pytest.raises(StoreError, match=r"s\.zarr: another process"):
        embed(manifest, store)
    assert embed(manifest, store).counts.encoded == 24


def test_a_store_is_created_under_its_lock_and_a_killed_creation_leaves_nothing(tmp_path):
    manifest = write_dataset(tmp_path, lengths=(2,))
    store = tmp_path / "s.zarr"
    left = tmp_path / ".s.zarr.4711.partial"
    other = tmp_path / ".s.zarr.v2.4711.partial"  # of a store named s.zarr.v2
    left.mkdir()
    other.mkdir()
    with sole_writer(store, StoreError, lock=sibling(store, "lock")):
        with pytest.raises(StoreError, match="another process"):
            embed(manifest, store)
        assert not store.exists()
        assert left.exists()
    embed(manifest, store)
    assert not left.exists()
    assert other.exists()


def test_a_store_is_never_made_of_something_else(tmp_path):
    manifest = write_dataset(tmp_path, lengths=(2,))
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/precious").write_text("")
    for place in ("file", "folder"):
        with pytest.raises(StoreError, match="found other files; use another --store"):
            embed(manifest, tmp_path / place)


@pytest.mark.parametrize("device", ["cuda:99", "tpu", ""])
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path, device):
    manifest = write_dataset(tmp_path, lengths=(2,))
    with pytest.raises(DeviceError, match="device"):
        embed(manifest, tmp_path / "s.zarr", device=device)
    assert not (tmp_path / "s.zarr").exists()


def test_frames_of_another_size_need_the_opt_in(tmp_path):
    manifest = write_dataset(tmp_path, lengths=(2,), size=(120, 160))
    with pytest.raises(DatasetError, match=r"256x256 pixels, found 120x160.*resize = \[256, 256\]"):
        embed(manifest, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()

    manifest.write_text("resize = [256, 256]\n" + manifest.read_text())
    embed(manifest, tmp_path / "s.zarr")

    store = FeatureStore.open(tmp_path / "s.zarr")
    frames = resize_images(recorded_frames(manifest, 0)[1])
    live = load(tiny_tower()).encode_views(frames[None])["pooled"]
    np.testing.assert_array_equal(store.read_features("pooled")[1], live[0])
    assert store.attributes.manifest["resize"] == [256, 256]


def test_a_frame_that_does_not_decode_commits_nothing(copied):
    manifest, store = copied
    shutil.rmtree(store)
    break_frame(manifest.parent / "data/episode_0.hdf5", "top", 2)
    with pytest.raises(FailedUnitsError, match=r"1 of 1 units failed.*episode_0"):
        embed(manifest, store)
    assert not (store / "COMPLETE.json").exists()
    assert list((store / "commits").iterdir()) == []
