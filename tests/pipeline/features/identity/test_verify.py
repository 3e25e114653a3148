"""Random rows encoded again: the verdict on stores that are right, and on some that are not."""

import dataclasses
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import EncoderMismatchError, StoreError
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.identity.source import SOURCE_NOTE
from pipeline.features.identity.verify import Distances, VerifyReport, verify_store
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import mark_complete
from pipeline.features.store.records import COMPLETE_MARK, record_name
from pipeline.features.store.units import CHUNK_ROWS
from tests.pipeline.features.still_life import write_still_life
from tests.pipeline.tiny import create_store, tiny_environment, write_dataset
from tests.tower import tiny_tower

NUM_STEPS = 8


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    manifest = write_dataset(folder)
    config = EmbedConfig(
        manifest=manifest,
        store=folder / "s.zarr",
        encoder=tiny_tower(),
        features=("pooled", "grid"),
        compute_dtype="float32",
    )
    embed_dataset(config)
    return folder


@pytest.fixture
def folder(embedded, tmp_path) -> Path:
    return Path(shutil.copytree(embedded, tmp_path / "copy"))


def verify(folder: Path, sample: int = NUM_STEPS, seed: int = 0) -> VerifyReport:
    [manifest] = folder.glob("*.toml")
    return verify_store(folder / "s.zarr", manifest, sample=sample, seed=seed, encoder=tiny_tower())


def read(folder: Path) -> dict[str, np.ndarray]:
    return FeatureStore.open(folder / "s.zarr").read_unit_features(0)


def rewrite(folder: Path, environment: str | None = None, **features: np.ndarray) -> None:
    """Put other features under the very record of a store, as a faulty encoder would have."""
    store = FeatureStore.open(folder / "s.zarr", writable=True)
    environments = {environment} if environment else {*store.unit_record(0).environments}
    held = store.read_unit_features(0)
    store.write_unit(0, held | features, store.read_unit_hashes(0), environments)
    mark_complete(store)


def test_a_store_of_this_environment_is_confirmed_bit_for_bit(folder):
    report = verify(folder)
    assert report.is_within_tolerance
    assert (report.num_steps, report.num_images, report.num_exact_steps) == (8, 24, 8)
    assert list(report.distances) == ["pooled", "grid"]
    for found in report.distances.values():
        assert (found.max_abs, found.relative_l2_worst, found.equal_share) == (0, 0, 1)
    assert "OK (8 steps bit for bit" in report.summary()
    assert "(of 8) were" in report.summary()
    unfinished = dataclasses.replace(report, num_missing_steps=92)
    assert "(of 8; 92 are not embedded yet) were" in unfinished.summary()


def test_the_manifest_is_found_through_the_store(embedded):
    report = verify_store(embedded / "s.zarr", None, sample=1, seed=0, encoder=tiny_tower())
    assert report.is_within_tolerance


def test_a_sample_is_drawn_by_its_seed(folder):
    """A single wrong row among eight is met by some seeds and missed by others."""
    grid = read(folder)["grid"]
    grid[5, 1] = grid[4, 1]
    rewrite(folder, grid=grid)
    verdicts = [verify(folder, sample=2, seed=seed).is_within_tolerance for seed in range(5)]
    assert {True, False} == set(verdicts)
    assert verify(folder, 2, seed=4).is_within_tolerance == verdicts[4]
    report = verify(folder)
    assert not report.is_within_tolerance
    assert report.num_broken_steps == 1
    assert (
        "episode_1.hdf5, step 0, view top" in report.worst["grid"]
    )  # row 5 of episodes of 5 and 3 steps
    assert report.distances["pooled"].equal_share == 1
    assert "OUT OF TOLERANCE" in report.summary()


@pytest.mark.parametrize("feature", ["pooled", "grid"])
def test_one_bit_is_too_much_in_the_same_environment_and_allowed_in_another(folder, feature):
    values = read(folder)[feature]
    values.view(np.uint16)[2, 0].flat[7] ^= 1
    rewrite(folder, **{feature: values})
    report = verify(folder)
    assert not report.is_within_tolerance
    assert report.num_broken_steps == 1
    assert report.distances[feature].equal_share == 1 - 1 / values.size
    assert 0 < report.distances[feature].relative_l2_worst < report.tolerance

    rewrite(folder, tiny_environment().digest())
    report = verify(folder)
    assert report.is_within_tolerance
    assert report.num_exact_steps == 0


def test_another_environment_has_its_limit(folder):
    shift = np.float64(1 + 2 * verify(folder, 1).tolerance)
    longer = (read(folder)["pooled"] * shift).astype(np.float16)
    rewrite(folder, tiny_environment().digest(), pooled=longer)
    report = verify(folder)
    found = report.distances["pooled"]
    assert not report.is_within_tolerance
    assert found.relative_l2_worst == pytest.approx(2 * report.tolerance, rel=0.1)
    assert report.distances["grid"].equal_share == 1


def test_frames_that_changed_since_are_told_from_a_wrong_encoder(folder):
    with h5py.File(folder / "data/episode_1.hdf5", "r+") as file:
        file["observations/images/top"][2] = np.full((256, 256, 3), 7, np.uint8)
    report = verify(folder)
    assert not report.is_within_tolerance
    assert len(report.changed) == 1
    assert "episode_1.hdf5, step 2, view top" in report.changed[0]
    assert "have changed since they were embedded" in report.summary()


def test_one_level_of_one_pixel_is_another_frame(folder):
    """Too little to leave the tolerance of another environment: the hash of the pixels tells."""
    rewrite(folder, tiny_environment().digest())
    with h5py.File(folder / "data/episode_0.hdf5", "r+") as file:
        file["observations/images/front"][3, 100, 100, 1] ^= 1
    report = verify(folder)
    assert report.distances["pooled"].relative_l2_worst < report.tolerance
    assert not report.is_within_tolerance
    assert "step 3, view front" in report.changed[0]


@pytest.fixture(scope="module")
def two_units_embedded(tmp_path_factory):
    """A dataset of 256 + 3 steps; frames are few pictures, so that few are encoded."""
    folder = tmp_path_factory.mktemp("two")
    manifest = write_still_life(folder, (CHUNK_ROWS, 3))
    embed_dataset(
        EmbedConfig(
            manifest=manifest,
            store=folder / "s.zarr",
            encoder=tiny_tower(),
            compute_dtype="float32",
        )
    )
    return folder


@pytest.fixture
def two_units(two_units_embedded, tmp_path) -> Path:
    shutil.copytree(two_units_embedded / "s.zarr", tmp_path / "s.zarr")
    for name in ("data", "still.toml"):
        (tmp_path / name).symlink_to(two_units_embedded / name)
    return tmp_path


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("is_complete", [True, False])
@pytest.mark.parametrize(
    ("name", "unit"),
    [("features/pooled/c/1/0/0", 1), ("frame_hash/c/0/0", 0), ("commits/000001.json", 1)],
)
def test_a_damaged_unit_is_named_and_its_rows_are_not_drawn(two_units, name, unit, is_complete):
    path = two_units / "s.zarr"
    if not is_complete:
        (path / COMPLETE_MARK).unlink()
    assert verify(two_units, sample=1).damaged_units == ()
    flip_a_bit(path / name)
    report = verify(two_units, sample=1)
    assert report.damaged_units == (unit,)
    assert not report.is_within_tolerance
    assert report.distances["pooled"].relative_l2_worst == 0
    assert report.num_committed_steps == (CHUNK_ROWS, 3)[1 - unit]
    assert f"1 units are damaged; run vla-embed again to encode them again: unit {unit}" in (
        report.summary()
    )
    assert report.summary().splitlines()[-1].startswith(f"{path}: DAMAGED")


def test_a_unit_without_a_record_is_damage_in_a_complete_store_alone(two_units):
    (two_units / "s.zarr" / record_name(1)).unlink()
    report = verify(two_units, sample=1)
    assert (report.damaged_units, report.is_within_tolerance) == ((1,), False)
    (two_units / "s.zarr" / COMPLETE_MARK).unlink()
    report = verify(two_units, sample=1)
    assert (report.damaged_units, report.is_within_tolerance) == ((), True)


def test_a_store_of_damaged_units_alone_is_reported(folder):
    flip_a_bit(folder / "s.zarr/features/grid/c/0/0/0/0/0")
    report = verify(folder)
    assert (report.damaged_units, report.is_within_tolerance) == ((0,), False)
    assert "DAMAGED" in report.summary()


def test_other_data_is_refused(folder):
    (folder / "data/episode_1.hdf5").unlink()
    with pytest.raises(StoreError, match=r"holds 2 episodes of 8 steps.*has 1 of 5"):
        verify(folder)


def test_another_manifest_of_the_same_files_is_refused(folder):
    path = folder / "tiny.toml"
    path.write_text(path.read_text().replace('revision = "0"', 'revision = "1"'))
    with pytest.raises(StoreError, match=r"tiny\.toml: is not the manifest"):
        verify(folder)


def test_variants_are_verified_too(tmp_path):
    manifest, path = write_dataset(tmp_path, lengths=(2,)), tmp_path / "s.zarr"
    embed_dataset(EmbedConfig(manifest=manifest, store=path, encoder=tiny_tower(), num_variants=1))
    report = verify(tmp_path)
    assert report.is_within_tolerance
    assert report.num_images == 2 * 3 * 2
    pooled = read(tmp_path)["pooled"]
    pooled[1, 4] = pooled[1, 3]
    rewrite(tmp_path, pooled=pooled)
    report = verify(tmp_path)
    assert not report.is_within_tolerance
    assert "episode_0.hdf5, step 1, view top, variant 1" in report.worst["pooled"]


def test_a_store_that_does_not_say_where_its_data_lies_asks_for_the_manifest(folder):
    (folder / "s.zarr" / SOURCE_NOTE).unlink()
    with pytest.raises(StoreError, match="pass its --manifest"):
        verify_store(folder / "s.zarr", None, sample=1, seed=0)


def test_a_store_without_rows_or_with_another_encoder_is_refused(folder, tmp_path):
    empty = create_store(tmp_path / "empty.zarr", (5, 3))
    with pytest.raises(StoreError, match="no unit is committed"):
        verify_store(empty.path, folder / "tiny.toml", sample=1, seed=0)
    other = _store_of_another_encoder(folder, tmp_path)
    with pytest.raises(EncoderMismatchError, match="with different weights, preprocessing"):
        verify_store(other, folder / "tiny.toml", sample=1, seed=0, encoder=tiny_tower())


def _store_of_another_encoder(folder: Path, tmp_path: Path) -> Path:
    held = FeatureStore.open(folder / "s.zarr")
    encoder = held.attributes.encoder.model_copy(update={"weights": "0" * 64})
    attributes = held.attributes.model_copy(update={"encoder": encoder})
    store = FeatureStore.create(
        tmp_path / "other.zarr", attributes, held.read_steps(), held.read_probe(), held.read_bases()
    )
    store.write_unit(0, held.read_unit_features(0), held.read_unit_hashes(0), {"0"})
    return store.path


def test_distances_are_those_of_a_closed_form():
    """Features of length 5 and 10 at a right angle, and equal ones."""
    found, expected = np.zeros((2, 1, 768), np.float16), np.zeros((2, 1, 768), np.float16)
    found[0, 0, :2] = 3, 4
    expected[0, 0, :2] = -8, 6
    found[1], expected[1] = 2, 2
    assert dataclasses.asdict(Distances.between(found, expected)) == pytest.approx(
        {"max_abs": 11, "relative_l2_worst": 125**0.5 / 10, "equal_share": 1 - 2 / 1536}
    )
