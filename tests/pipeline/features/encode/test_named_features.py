"""Stores of several named features, one of them a grid that is fitted to the dataset."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from pipeline.errors import ConfigError, EncoderMismatchError, StoreError
from pipeline.features.encode.embed import EmbedConfig, EmbedReport, embed_dataset
from pipeline.features.encode.target import continue_store
from pipeline.features.identity.verify import verify_store
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import verify_checksums
from pipeline.features.store.records import COMPLETE_MARK, SOURCE_NOTE
from pipeline.features.store.units import CHUNK_ROWS
from pipeline.storage.location import ObjectUrl
from pipeline.storage.open import open_folder
from policy.errors import EncoderLoadError
from tests.object_server import BUCKET
from tests.pipeline.features.still_life import write_still_episode, write_still_life
from tests.pipeline.tiny import VIEWS, create_store, tiny_identity, write_dataset
from tests.tower import WIDTH, load, tiny_tower

BOTH = ("pooled", "grid")
LENGTHS = (CHUNK_ROWS - 6, 20)  # two units
GRID_CHUNK = "features/grid/c/1/0/0/0/0"
BASIS = "bases/grid/c/0/0"


def embed(manifest: Path, store: Path | ObjectUrl, **settings) -> EmbedReport:
    given = {"encoder": tiny_tower()} | settings
    return embed_dataset(EmbedConfig(manifest=manifest, store=store, **given))


def content(location: Path | ObjectUrl) -> dict[str, bytes]:
    """Every file but the note that says where the dataset is."""
    folder = open_folder(location)
    return {name: folder.read(name) for name in folder.names() if name != SOURCE_NOTE}


def recorded_steps(manifest: Path) -> np.ndarray:
    """The frames of every step, uint8 [n, 3, 256, 256, 3], read without our readers."""
    episodes = []
    for path in sorted((manifest.parent / "data").iterdir()):
        with h5py.File(path) as file:
            views = [file[f"observations/images/{view}"][:] for view in VIEWS]
        episodes.append(np.stack(views, axis=1))
    return np.concatenate(episodes)


def assert_cached_equals_live(manifest: Path, store: Path, rows=slice(None), **settings) -> None:
    """Load the encoder anew and encode each step alone, as a robot's control loop does."""
    held = FeatureStore.open(store)
    settings = {"name": tiny_tower(), "images_per_pass": 3} | settings
    live = load(**settings, features=held.encoder.feature_names, bases=held.read_bases())
    cached = {spec.name: held.read_features(spec.name) for spec in held.encoder.features}
    frames = recorded_steps(manifest)
    for row in range(held.num_rows)[rows]:
        for name, features in live.encode_views(frames[[row]]).items():
            np.testing.assert_array_equal(cached[name][row], features[0])


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    embed(write_still_life(folder, LENGTHS), folder / "s.zarr", features=BOTH)
    return folder


@pytest.fixture
def copied(embedded, tmp_path):
    """The manifest of a dataset, and its store."""
    shutil.copytree(embedded, tmp_path / "copy")
    return tmp_path / "copy/still.toml", tmp_path / "copy/s.zarr"


@pytest.mark.parametrize(
    ("name", "features"),
    [("efficientnet-lite0", BOTH), ("tiny", BOTH), ("tiny", ("pooled",)), ("tiny", ("grid",))],
)
def test_in_passes_of_eight_cached_features_of_three_views_equal_live_ones(
    tmp_path, name, features
):
    """Embedding fills its passes with images of several steps; live, five places are fillers."""
    name = tiny_tower() if name == "tiny" else name
    manifest, store = write_dataset(tmp_path, lengths=(2, 1)), tmp_path / "s.zarr"
    embed(manifest, store, encoder=name, features=features, images_per_pass=8)
    assert FeatureStore.open(store).encoder.feature_names == features
    assert_cached_equals_live(manifest, store, name=name, images_per_pass=8)


def test_all_features_are_stored_verified_and_live_the_same(embedded):
    manifest, store = embedded / "still.toml", embedded / "s.zarr"
    held = FeatureStore.open(store)
    assert [spec.shape for spec in held.encoder.features] == [(WIDTH,), (4, 4, 64)]
    assert held.attributes.fitted == ("grid",)
    assert_cached_equals_live(manifest, store, rows=slice(0, None, 55))
    assert not verify_checksums(store).damaged
    report = verify_store(store, None, sample=5, seed=0, encoder=tiny_tower())
    assert report.is_within_tolerance
    assert (list(report.distances), report.num_exact_steps) == (list(BOTH), 5)


@pytest.mark.parametrize("lost", [GRID_CHUNK, "features/pooled/c/1/0/0", "commits/000001.json"])
def test_a_unit_that_lost_one_feature_is_encoded_again_to_the_same_bytes(copied, lost):
    """Without naming the features again: they are the store's."""
    manifest, store = copied
    before = content(store)
    (store / lost).unlink()
    counts = embed(manifest, store).counts
    assert counts.encoded + counts.copied + counts.repeated == 3 * (sum(LENGTHS) - CHUNK_ROWS)
    assert content(store) == before


def test_growth_keeps_the_features_and_the_basis(copied):
    """The pictures of the new episode would be another sample, and so another basis."""
    manifest, store = copied
    before, basis = FeatureStore.open(store), (store / BASIS).read_bytes()
    held = {name: before.read_features(name) for name in BOTH}
    changes = {step: 50 + step for step in range(6)}
    write_still_episode(manifest.parent / "data", 2, 8, changes)
    counts = embed(manifest, store).counts
    assert (counts.encoded, counts.copied) == (6, 3 * (before.num_rows + 2))
    assert (store / BASIS).read_bytes() == basis
    for name, values in held.items():
        grown = FeatureStore.open(store).read_features(name)
        np.testing.assert_array_equal(grown[: len(values)], values)
    assert_cached_equals_live(manifest, store, rows=slice(before.num_rows, None))


def test_an_encoder_loaded_before_another_part_made_the_store_takes_over_its_basis(embedded):
    held, encoder = FeatureStore.open(embedded / "s.zarr"), load(tiny_tower(), features=BOTH)
    assert encoder.unfitted == ("grid",)
    continue_store(held.path, encoder)
    assert encoder.identity == held.encoder
    assert not encoder.unfitted


def test_changed_frames_are_encoded_with_the_basis_that_the_store_has(copied):
    manifest, store = copied
    basis = (store / BASIS).read_bytes()
    write_still_episode(manifest.parent / "data", 1, 20, {step: 70 + step for step in range(20)})
    assert embed(manifest, store).counts.encoded >= 20
    assert (store / BASIS).read_bytes() == basis
    assert_cached_equals_live(manifest, store, rows=slice(CHUNK_ROWS, None, 5))


def flip_a_bit(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_damaged_basis_is_refused(copied, is_complete):
    manifest, store = copied
    if not is_complete:
        (store / COMPLETE_MARK).unlink()
    flip_a_bit(store / BASIS)
    with pytest.raises(StoreError, match=r"s\.zarr/bases/grid: .*embed into another --store"):
        embed(manifest, store)
    if is_complete:
        assert [line.split(":")[0] for line in verify_checksums(store).damaged] == ["bases/grid"]


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_basis_that_another_program_rewrote_is_refused(copied, is_complete):
    """Every checksum of Zarr is right: the mark tells, or the feature's fingerprint."""
    manifest, store = copied
    if not is_complete:
        (store / COMPLETE_MARK).unlink()
    zarr.open_group(store, mode="r+")["bases/grid"][3, 4] += 1
    expected = (
        (StoreError, "bases/grid: differs from what was embedded")
        if is_complete
        else (EncoderMismatchError, "layer, pooling or basis of `grid`")
    )
    with pytest.raises(expected[0], match=expected[1]):
        embed(manifest, store)


@pytest.mark.parametrize("features", [("pooled",), ("pooled", "grid@1"), ("grid", "pooled")])
def test_a_store_of_other_features_is_refused_by_what_it_holds(copied, features):
    manifest, store = copied
    before = content(store)
    if "grid@1" in features:
        with pytest.raises(
            EncoderLoadError, match="expected each of pooled, grid at most once, found 'grid@1'"
        ):
            embed(manifest, store, features=features)
    else:
        message = f"contains the features pooled,grid, not {','.join(features)}; use"
        with pytest.raises(StoreError, match=message):
            embed(manifest, store, features=features)
    assert content(store) == before


def test_a_feature_that_would_have_to_be_fitted_is_refused_like_any_other(copied, tmp_path):
    manifest, both = copied
    held = tmp_path / "pooled.zarr", tmp_path / "grid.zarr"
    for store, shapes in zip(held, ({"pooled": (768,)}, {"grid": (8, 8, 112)}), strict=True):
        create_store(store, LENGTHS, identity=tiny_identity(shapes=shapes))
    with pytest.raises(StoreError, match="contains the features pooled, not pooled,g"):
        embed(manifest, held[0], features=BOTH)
    with pytest.raises(EncoderMismatchError, match="with different weights"):
        embed(manifest, held[1])
    with pytest.raises(EncoderMismatchError, match="with different weights"):
        embed(manifest, both, encoder="stand-in")


def test_another_number_of_images_per_pass_wants_another_store(copied, tmp_path):
    manifest, store = copied
    assert FeatureStore.open(store).attributes.environment.images_per_pass == 3
    with pytest.raises(StoreError, match=r"expected images_per_pass 3, .*found 8; use"):
        embed(manifest, store, images_per_pass=8)
    with pytest.raises(
        ConfigError, match="images_per_pass: expected at least 3, the views of one step, found 2"
    ):
        embed(manifest, tmp_path / "new.zarr", images_per_pass=2)


def test_a_store_of_two_features_in_a_bucket_has_the_bytes_of_a_local_one(embedded, proxy):
    """One request in seven fails; then a unit loses one feature and is encoded again."""
    proxy.share = 1 / 7
    manifest, url = embedded / "still.toml", ObjectUrl("s3", BUCKET, "stores/named.zarr")
    embed(manifest, url, features=BOTH)
    assert content(url) == content(embedded / "s.zarr")
    open_folder(url).delete([GRID_CHUNK])
    embed(manifest, url)
    assert content(url) == content(embedded / "s.zarr")
    assert len(proxy.failed) > 5
