"""Augmented variants: beside the frames in the store, drawn a window at a time by the trainer."""

import numpy as np
import pytest
import torch

from pipeline.datasets.manifest.model import load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import StoreError
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.store.feature_store import FeatureStore
from pipeline.training.data.windows import WindowData
from policy.images import augment_images, draw_augmentation
from tests.pipeline.tiny import write_dataset
from tests.tower import load, tiny_tower

LENGTHS, VARIANTS, NUM_VIEWS = (3, 2), 2, 3


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The same dataset with and without variants."""
    folder = tmp_path_factory.mktemp("variants")
    manifest = write_dataset(folder, LENGTHS)
    for name, count in (("plain.zarr", 0), ("variants.zarr", VARIANTS)):
        embed_dataset(
            EmbedConfig(
                manifest=manifest, store=folder / name, encoder=tiny_tower(), num_variants=count
            )
        )
    return folder


def open_store(folder, name: str) -> FeatureStore:
    return FeatureStore.open(folder / name)


def test_the_frames_as_recorded_have_the_features_of_a_store_without_variants(stores):
    plain = open_store(stores, "plain.zarr")
    both = open_store(stores, "variants.zarr")
    assert both.read_features("pooled").shape == (5, (1 + VARIANTS) * NUM_VIEWS, 768)
    np.testing.assert_array_equal(
        both.read_features("pooled")[:, :NUM_VIEWS], plain.read_features("pooled")
    )
    assert both.source_digest() == plain.source_digest()
    assert both.digest() != plain.digest()


def test_a_variant_is_the_feature_of_the_augmented_frame(stores):
    """Of one crop and colour change a view of an episode, in every step the same."""
    features = open_store(stores, "variants.zarr").read_features("pooled")
    encoder = load(tiny_tower())
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
            expected = encoder.encode_views(torch.from_numpy(augmented)).numpy()
            slots = slice(variant * NUM_VIEWS, (variant + 1) * NUM_VIEWS)
            np.testing.assert_array_equal(features[row : row + length, slots], expected)
        row += length
    reader.close()


def test_a_window_shows_the_asked_variant_in_every_observation_step(stores):
    data = WindowData(open_store(stores, "variants.zarr"), heldout_share=0.0)
    rows = torch.tensor([1, 4])
    variants = torch.tensor([[0, 2, 1], [1, 0, 2]])
    windows = data.gather(rows, obs_horizon=2, pred_horizon=2, variants=variants)
    stored = torch.from_numpy(open_store(stores, "variants.zarr").read_features("pooled"))
    for window, row in enumerate(rows.tolist()):
        for step in range(2):
            for view in range(NUM_VIEWS):
                slot = int(variants[window, view]) * NUM_VIEWS + view
                expected = stored[row - 1 + step, slot].float()
                assert torch.equal(windows.features[window, step, view], expected)


def test_without_a_draw_windows_and_statistics_are_those_of_the_plain_store(stores):
    plain = WindowData(open_store(stores, "plain.zarr"), heldout_share=0.0)
    both = WindowData(open_store(stores, "variants.zarr"), heldout_share=0.0)
    rows = torch.arange(5)
    first, second = (data.gather(rows, obs_horizon=2, pred_horizon=2) for data in (plain, both))
    assert torch.equal(first.features, second.features)
    assert torch.equal(plain.statistics.feature_std, both.statistics.feature_std)
    generator = torch.Generator()
    assert plain.draw_variants(5, generator) is None
    drawn = both.draw_variants(300, generator)
    assert drawn.shape == (300, NUM_VIEWS)
    assert sorted(set(drawn.flatten().tolist())) == [0, 1, 2]


@pytest.mark.parametrize("settings", [{"num_variants": 1}, {}])
def test_another_number_of_variants_wants_another_store(stores, settings):
    with pytest.raises(StoreError, match=f"made with variants {VARIANTS}, this run asks for"):
        embed_dataset(
            EmbedConfig(
                manifest=stores / "tiny.toml",
                store=stores / "variants.zarr",
                encoder=tiny_tower(),
                **settings,
            )
        )
