"""Augmented variants are drawn per window by the trainer."""

import shutil

import pytest
import torch

from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.store.feature_store import FeatureStore
from pipeline.training.data.windows import WindowData
from tests.pipeline.tiny import write_dataset
from tests.tower import tiny_tower

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


def load(folder, name: str) -> WindowData:
    return WindowData(FeatureStore.open(folder / name), features=("pooled",), validation_share=0.0)


def test_a_window_shows_the_asked_variant_in_every_observation_step(stores):
    data = load(stores, "variants.zarr")
    rows = torch.tensor([1, 4])
    variants = torch.tensor([[0, 2, 1], [1, 0, 2]])
    windows = data.gather(rows, obs_horizon=2, pred_horizon=2, variants=variants)
    stored = torch.from_numpy(FeatureStore.open(stores / "variants.zarr").read_features("pooled"))
    for window, row in enumerate(rows.tolist()):
        for step in range(2):
            for view in range(NUM_VIEWS):
                slot = int(variants[window, view]) * NUM_VIEWS + view
                expected = stored[row - 1 + step, slot].float()
                assert torch.equal(windows.features["pooled"][window, step, view], expected)


def test_features_in_the_memory_of_a_device_are_those_of_the_files(stores, tmp_path):
    shutil.copytree(stores / "variants.zarr", tmp_path / "s.zarr")
    data = load(tmp_path, "s.zarr")
    rows, variants = torch.tensor([1, 4]), torch.tensor([[0, 2, 1], [1, 0, 2]])
    expected = data.gather(rows, obs_horizon=2, pred_horizon=2, variants=variants)
    data.move_features(torch.device("cpu"))
    shutil.rmtree(tmp_path / "s.zarr")
    found = data.gather(rows, obs_horizon=2, pred_horizon=2, variants=variants)
    assert torch.equal(found.features["pooled"], expected.features["pooled"])


def test_without_a_draw_windows_and_statistics_are_those_of_the_plain_store(stores):
    plain = load(stores, "plain.zarr")
    both = load(stores, "variants.zarr")
    rows = torch.arange(5)
    first, second = (data.gather(rows, obs_horizon=2, pred_horizon=2) for data in (plain, both))
    assert torch.equal(first.features["pooled"], second.features["pooled"])
    ours, theirs = (data.statistics.feature_std["pooled"] for data in (plain, both))
    assert torch.equal(ours, theirs)
