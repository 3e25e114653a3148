"""Training on cached features equals training with the encoder in every step, bit for bit."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import torch

from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.identity.source import open_source
from pipeline.features.store.feature_store import FeatureStore
from pipeline.training.config import with_settings
from pipeline.training.data.windows import WindowData
from pipeline.training.presets import debug
from tests.bench.live_training import LiveWindowData
from tests.bench.train_speed import trainer_of
from tests.pipeline.tiny import write_dataset
from tests.tower import load, tiny_tower

THIRD_VIEW = ', {name = "r_vis", key = "observations/images/r_vis"}'
WEIGHTS = (1.0, 2.0)


def embed(folder: Path, lengths: tuple[int, ...]) -> FeatureStore:
    """Embed a dataset of two views with one variant of each frame."""
    manifest = write_dataset(folder, lengths)
    manifest.write_text(manifest.read_text().replace(THIRD_VIEW, ""))
    config = EmbedConfig(
        manifest=manifest, store=folder / "s.zarr", encoder=tiny_tower(), num_variants=1
    )
    embed_dataset(config)
    return FeatureStore.open(folder / "s.zarr")


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[FeatureStore]:
    lengths = ((2, 3, 1), (3, 1))
    return [embed(tmp_path_factory.mktemp("live"), each) for each in lengths]


@pytest.fixture
def cached(stores) -> WindowData:
    return WindowData(*stores, features=("pooled",), validation_share=0.3, weights=WEIGHTS)


@pytest.fixture
def live(stores) -> Iterator[LiveWindowData]:
    with ExitStack() as opened:
        yield LiveWindowData(
            *stores,
            readers=[opened.enter_context(closing(open_source(store))) for store in stores],
            encoder=load(tiny_tower(), images_per_pass=2),
            validation_share=0.3,
            weights=WEIGHTS,
        )


def test_live_windows_equal_cached_ones_bit_for_bit(cached, live):
    """Two stores; views in different variants; repeated rows; an episode's first and last step."""
    rows = torch.tensor([0, 9, 3, 3, 6, 5])
    for variants in (None, torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0], [0, 1], [1, 0]])):
        ours, theirs = (
            data.gather(rows, obs_horizon=2, pred_horizon=4, variants=variants)
            for data in (live, cached)
        )
        assert torch.equal(ours.features["pooled"], theirs.features["pooled"])
        for field in ("state", "actions", "valid"):
            assert torch.equal(getattr(ours, field), getattr(theirs, field)), field


def test_live_training_has_the_losses_and_the_weights_of_cached_training(
    stores, cached, live, tmp_path
):
    config = with_settings(debug(), ["steps=20", "batch_size=4", "validation_share=0.3"])
    runs = [trainer_of(config, stores[0], data, tmp_path / "run") for data in (cached, live)]
    for _ in range(20):
        ours, theirs = (trainer.advance() for trainer in runs)
        assert ours.keys() == theirs.keys()
        for name, figure in ours.items():
            assert torch.equal(figure, theirs[name]), name
    for name, tensor in runs[0].agent.state_dict().items():
        assert torch.equal(tensor, runs[1].agent.state_dict()[name]), name
