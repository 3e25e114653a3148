"""From an encoder to a rollout: what a newcomer's encoder needs, and the shipped ones' features.

The newcomer's has two features of odd shapes and is one entry in the registry.
"""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.identity.verify import verify_store
from pipeline.features.store.feature_store import FeatureStore
from pipeline.rollout.gate.checks import PolicyConfig, load_policy
from pipeline.rollout.play.loop import RolloutConfig, roll_out
from pipeline.rollout.play.result import RolloutResult
from pipeline.training.config import TrainConfig
from pipeline.training.presets import debug
from pipeline.training.run.checkpoint import read_average
from pipeline.training.session import train
from pipeline.training.trainer import TrainingWatcher
from policy.encoders.registry import ENCODERS
from policy.network.readers import ReaderConfig
from tests import toy_encoder
from tests.pipeline.rollout.toy_run import EPISODES, STEPS, VIEWS, record, write_env
from tests.tower import tiny_tower

READER = ReaderConfig(projection_dim=4)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return record(tmp_path_factory.mktemp("recorded"))


def config(readers: dict[str, ReaderConfig]) -> TrainConfig:
    agent = debug().agent.model_copy(update={"readers": readers})
    return debug().model_copy(update={"agent": agent})


def roll_toy_out(run: Path, encoder: str) -> RolloutResult:
    env = write_env(run.parent / "env.toml", package=None)
    rollout = RolloutConfig(
        run=run, envs=(env,), out=run / "rollout", episodes=2, videos="none", encoder=encoder
    )
    return roll_out(rollout.model_copy(update={"camera_check": "warn"}))


def assert_cached_equals_live(store: FeatureStore, manifest: Path, run: Path, encoder: str) -> None:
    """One step of each episode, as the rollout encodes it: every bit."""
    _, agent, _ = load_policy(PolicyConfig(run=run, encoder=encoder))
    assert store.num_rows == EPISODES * STEPS
    for episode, path in enumerate(sorted((manifest.parent / "data").iterdir())):
        step = episode + 1
        with h5py.File(path) as file:
            frames = np.stack([file[f"observations/images/{view}"][step] for view in VIEWS])
        live = agent.encode_views(frames[None])
        assert set(live) == set(agent.config.readers)
        for name, features in live.items():
            cached = store.read_features(name)[episode * STEPS + step, : len(VIEWS)]
            np.testing.assert_array_equal(features[0].numpy(), cached.astype(np.float32))


def test_an_encoder_of_one_registry_entry_goes_all_the_way(manifest, tmp_path, monkeypatch):
    monkeypatch.setitem(ENCODERS, toy_encoder.NAME, toy_encoder.MODULE)
    path, run = tmp_path / "s.zarr", tmp_path / "run"
    embed_dataset(EmbedConfig(manifest=manifest, store=path, encoder=toy_encoder.NAME))
    store = FeatureStore.open(path)
    for name, shape in toy_encoder.FEATURES.items():
        assert store.read_features(name).shape == (EPISODES * STEPS, len(VIEWS), *shape)
    assert verify_store(path, None, sample=EPISODES * STEPS, seed=0).is_within_tolerance

    train([path], run, config(dict.fromkeys(toy_encoder.FEATURES, READER)), resume=False)
    assert_cached_equals_live(store, manifest, run, toy_encoder.NAME)
    result = roll_toy_out(run, toy_encoder.NAME)
    assert result.encoder == store.encoder
    assert not result.encoder.pretrained
    assert [episode.failure for episode in result.episodes] == [None, None]


class Dying(TrainingWatcher):
    """Ends the training at its first checkpoint, as Ctrl-C does."""

    def checkpoint_written(self, run: Path, step: int) -> None:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def stores(manifest, tmp_path_factory):
    """A store of both features of each encoder, by the encoder's name."""
    paths = {}
    for encoder in ("efficientnet-lite0", tiny_tower()):
        paths[encoder] = tmp_path_factory.mktemp("embedded") / "s.zarr"
        settings = {"encoder": encoder, "features": ("pooled", "grid")}
        embed_dataset(EmbedConfig(manifest=manifest, store=paths[encoder], **settings))
    return paths


@pytest.mark.parametrize(
    ("encoder", "readers"),
    [
        ("tiny SigLIP2", {"pooled": READER, "grid": READER}),
        ("efficientnet-lite0", {"grid": READER}),  # its pooled one goes the whole way of commands
    ],
)
def test_each_feature_is_trained_on_resumed_and_rolled_out(
    stores, manifest, tmp_path, encoder, readers
):
    encoder = tiny_tower() if encoder == "tiny SigLIP2" else encoder
    path = stores[encoder]
    run, whole = tmp_path / "run", tmp_path / "whole"
    with pytest.raises(KeyboardInterrupt):
        train([path], run, config(readers), resume=False, watchers=[Dying()])
    assert train([path], run, config(readers), resume=True).resumed_from == 4
    train([path], whole, config(readers), resume=False)
    (_, resumed), (_, undisturbed) = read_average(run, 8), read_average(whole, 8)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in undisturbed.items())

    assert_cached_equals_live(FeatureStore.open(path), manifest, run, encoder)
    result = roll_toy_out(run, encoder)
    assert result.encoder.feature_names == tuple(readers)
    assert [episode.decisions for episode in result.episodes] == [3, 3]
