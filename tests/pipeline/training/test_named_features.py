"""Training on named features: only those that a policy reads are read, and kept with its run."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, RunError, StoreError
from pipeline.training.config import TrainConfig, with_settings
from pipeline.training.presets import debug
from pipeline.training.run.checkpoint import read_average
from pipeline.training.run.folder import PROBE_FILE, read_bases, read_probe, read_run
from pipeline.training.session import train
from policy.agent import VLAAgent
from tests.pipeline.tiny import STATE_DIM, complete_store, tiny_identity, tiny_steps
from tests.pipeline.training.data.test_stores import make_store

SHAPES = {"pooled": (768,), "grid": (2, 3, 6), "grid@1": (2, 3, 6)}
LENGTHS = (40, 40, 40)
BASES = {
    name: np.random.default_rng(seed).normal(size=(9, 6)).astype(np.float32)
    for seed, name in enumerate(("grid", "grid@1"))
}


def reading(*readers: str) -> TrainConfig:
    return with_settings(debug(), [f"agent.readers={{{', '.join(readers)}}}"])


POOLED = "pooled = {projection_dim = 8}"
GRID = "grid = {projection_dim = 5}"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("named") / "s.zarr"
    return complete_store(path, LENGTHS, identity=tiny_identity(shapes=SHAPES), bases=BASES)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """A policy that reads two of the three features."""
    run = tmp_path_factory.mktemp("two") / "run"
    train([store.path], run, reading(POOLED, GRID), resume=False)
    return run


def test_only_the_features_that_a_policy_reads_are_read(store, tmp_path):
    shutil.copytree(store.path, tmp_path / "s.zarr")
    for chunk in (tmp_path / "s.zarr/features/grid/c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"damaged")
    report = train([tmp_path / "s.zarr"], tmp_path / "pooled", reading(POOLED), resume=False)
    assert report.steps == 8
    with pytest.raises(StoreError, match="grid"):
        train([tmp_path / "s.zarr"], tmp_path / "grid", reading(GRID), resume=False)


def test_a_run_keeps_probe_and_bases_of_what_it_reads(store, run):
    description = read_run(run)
    probe, held = read_probe(run, description), store.read_probe()
    assert description.data.encoder == store.encoder.only(["pooled", "grid"])
    assert description.spec.feature_shapes == {"pooled": (768,), "grid": (2, 3, 6)}
    assert set(probe.features) == {"pooled", "grid"}
    for name, values in probe.features.items():
        np.testing.assert_array_equal(values, held.features[name])
    np.testing.assert_array_equal(probe.frames, held.frames)
    assert (probe.environment, probe.tolerance) == (held.environment, held.tolerance)
    bases = read_bases(run)
    assert set(bases) == {"grid"}
    np.testing.assert_array_equal(bases["grid"], BASES["grid"])


def test_a_probe_of_another_run_is_not_taken(store, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    train([store.path], tmp_path / "other", reading(POOLED), resume=False)
    shutil.copy(tmp_path / "other" / PROBE_FILE, tmp_path / "run" / PROBE_FILE)
    with pytest.raises(RunError, match="expected the probe listed"):
        read_probe(tmp_path / "run", read_run(tmp_path / "run"))


def test_a_feature_that_the_store_lacks_is_refused_and_those_there_are_listed(store, tmp_path):
    with pytest.raises(ConfigError) as refused:
        train([store.path], tmp_path / "run", reading("depth = {}"), resume=False)
    (line,) = str(refused.value).splitlines()
    assert "expected feature `depth`" in line
    assert "found pooled, grid, grid@1" in line
    assert not (tmp_path / "run").exists()


def trained_on(steps, tmp_path, *settings: str) -> VLAAgent:
    """Train a few steps on these states and actions; return the averaged policy."""
    path = make_store(tmp_path / "s.zarr", LENGTHS, steps=steps).path
    train([path], tmp_path / "run", with_settings(debug(), settings), resume=False)
    description = read_run(tmp_path / "run")
    agent = VLAAgent(description.config.agent, description.spec)
    agent.load_state_dict(read_average(tmp_path / "run")[1], strict=True)
    return agent


def answers(agent: VLAAgent, state: float = 0.0) -> torch.Tensor:
    """Eight chunks in robot states all of whose values are `state`."""
    generator = torch.Generator().manual_seed(0)
    features = {"pooled": torch.randn(8, 2, 3, 768, generator=generator)}
    shown = torch.full((8, 2, STATE_DIM), state)
    return agent.predict(features, shown, agent.noise(8, generator))


@pytest.mark.parametrize("scaling", ["range", "quantiles", "deviation"])
def test_an_action_that_is_constant_in_the_data_is_answered_bit_for_bit(tmp_path, scaling):
    steps = tiny_steps(LENGTHS)
    steps.action[:, 2] = 0.1
    agent = trained_on(steps, tmp_path, f"agent.action_scaling={scaling}")
    found = answers(agent)
    assert (found[..., 2] == torch.tensor(0.1)).all()
    assert found[..., 1].std() > 0.1


def test_one_wild_reading_sets_no_scale_by_quantiles(tmp_path):
    """The field's fault: one value of 4096 among 120, and the policy answered hundreds of rad."""
    tame = tiny_steps(LENGTHS)
    steps = dataclasses.replace(tame, state=tame.state.copy(), action=tame.action.copy())
    steps.state[3, 1] = steps.action[3, 1] = 4096.0
    settings = ("agent.state_scaling=quantiles", "agent.action_scaling=quantiles")
    agent = trained_on(steps, tmp_path, *settings, "validation_share=0.0")
    assert agent.state_normalizer.half_range[1] < 4  # a standard normal's 99 % quantile is 2.3
    assert answers(agent)[..., 1:].abs().max() < 1.6  # uniform in [-1, 1], and a quarter of it
    assert torch.equal(answers(agent, 1e4), answers(agent, 4e9))  # a live wild one is clipped
