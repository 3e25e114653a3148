"""Augmented variants, stored next to the frames."""

import numpy as np
import pytest

from pipeline.datasets.manifest.model import load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import StoreError
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.store.feature_store import FeatureStore
from policy.images import augment_images, draw_augmentation
from tests.pipeline.tiny import write_dataset
from tests.tower import load, tiny_tower

LENGTHS, VARIANTS, NUM_VIEWS = (3, 2), 2, 3
FEATURES = ("pooled", "grid")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The same dataset with and without variants."""
    folder = tmp_path_factory.mktemp("variants")
    manifest = write_dataset(folder, LENGTHS)
    for name, count in (("plain.zarr", 0), ("variants.zarr", VARIANTS)):
        embed_dataset(
            EmbedConfig(
                manifest=manifest,
                store=folder / name,
                encoder=tiny_tower(),
                features=FEATURES,
                num_variants=count,
            )
        )
    return folder


def open_store(folder, name: str) -> FeatureStore:
    return FeatureStore.open(folder / name)


def test_the_frames_as_recorded_have_the_features_of_a_store_without_variants(stores):
    plain = open_store(stores, "plain.zarr")
    both = open_store(stores, "variants.zarr")
    for spec in plain.encoder.features:
        features = both.read_features(spec.name)
        assert features.shape == (5, (1 + VARIANTS) * NUM_VIEWS, *spec.shape)
        np.testing.assert_array_equal(features[:, :NUM_VIEWS], plain.read_features(spec.name))
    assert both.source_digest() == plain.source_digest()
    assert both.digest() != plain.digest()


def test_a_variant_is_the_feature_of_the_augmented_frame(stores):
    """One crop and color change per view of an episode, the same in every step."""
    store = open_store(stores, "variants.zarr")
    encoder = load(tiny_tower(), features=FEATURES, bases=store.read_bases())
    reader = ManifestReader(load_manifest(stores / "tiny.toml"))
    row = 0
    for episode, length in enumerate(LENGTHS):
        views = reader.frames(episode, 0, length)
        for variant in range(1, 1 + VARIANTS):
            augmented = np.stack(
                [
                    augment_images(frames, draw_augmentation(0, episode, view, variant))
                    for view, frames in enumerate(views)
                ],
                axis=1,
            )
            slots = slice(variant * NUM_VIEWS, (variant + 1) * NUM_VIEWS)
            for name, expected in encoder.encode_views(augmented).items():
                found = store.read_features(name)[row : row + length, slots]
                np.testing.assert_array_equal(found, expected)
        row += length
    reader.close()


@pytest.mark.parametrize("settings", [{"num_variants": 1}, {}])
def test_another_number_of_variants_wants_another_store(stores, settings):
    with pytest.raises(
        StoreError, match=f"expected variants {VARIANTS}, as it was created with, found"
    ):
        embed_dataset(
            EmbedConfig(
                manifest=stores / "tiny.toml",
                store=stores / "variants.zarr",
                encoder=tiny_tower(),
                **settings,
            )
        )
