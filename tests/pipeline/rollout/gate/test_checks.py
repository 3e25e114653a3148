"""The gate: every planted mismatch is refused before an environment is stepped."""

import dataclasses

import numpy as np
import pytest

from pipeline.errors import EncoderMismatchError, EnvError, RunError
from pipeline.features.identity.probe import Probe, make_probe
from pipeline.rollout.envs.base import StepResult
from pipeline.rollout.gate.checks import PolicyConfig, check_env, load_policy
from pipeline.rollout.play.loop import RolloutConfig, roll_out
from pipeline.training.presets import debug
from pipeline.training.run.folder import (
    PROBE_FILE,
    DataIdentity,
    RunDescription,
    StoreIdentity,
    read_probe,
)
from pipeline.training.session import train
from policy.spec import AgentSpec
from tests.pipeline.tiny import POOLED, VIEWS, complete_store, tiny_identity
from tests.tower import load, tiny_tower


class StillEnv:
    """A robot that must not be moved."""

    name = "still"
    instruction = ""
    max_steps = 10
    action_bounds = None

    def __init__(self, view_names=("front", "top"), state_dim=5, action_dim=4, control_hz=50.0):
        self.view_names = view_names
        self.state_dim = state_dim
        self.action_dim = action_dim
        self.control_hz = control_hz

    def reset(self, seed: int) -> None:
        raise AssertionError("reset before the gate")

    def render(self):
        raise AssertionError("rendered before the gate")

    def effector_pixels(self):
        raise AssertionError("looked for before the gate")

    def state(self):
        raise AssertionError("read before the gate")

    def step(self, action) -> StepResult:
        raise AssertionError("moved before the gate")

    def close(self) -> None:
        pass


def description() -> RunDescription:
    return RunDescription(
        config=debug(),
        spec=AgentSpec(
            view_names=("front", "top"), feature_shapes=POOLED, state_dim=5, action_dim=4
        ),
        data=DataIdentity(
            stores=(StoreIdentity(name="tiny", digest="0", weight=1.0, manifest={}),),
            fps=50.0,
            encoder=tiny_identity(),
            probe_digest="0",
            start_frames_digest="0",
        ),
    )


def test_the_environment_of_the_recordings_passes():
    check_env(description(), StillEnv())


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"view_names": ("top", "front")}, "views: expected"),
        ({"view_names": ("front", "side")}, "views: expected"),
        ({"state_dim": 6}, "state width: .*found 6"),
        ({"action_dim": 7}, "action width: .*found 7"),
        ({"control_hz": 20.0}, r"control rate in Hz: expected 50\.0 as in training, found 20\.0"),
    ],
)
def test_another_environment_is_refused(settings, pattern):
    with pytest.raises(EnvError, match=pattern):
        check_env(description(), StillEnv(**settings))


def test_a_run_trained_on_another_encoders_features_is_refused(tmp_path):
    """The tiny store says that an encoder with another fingerprint made its features."""
    store = complete_store(tmp_path / "s.zarr")
    train([store.path], tmp_path / "run", debug(), resume=False)
    with pytest.raises(EncoderMismatchError, match=r"found stand-in .* with different weights"):
        load_policy(PolicyConfig(run=tmp_path / "run", encoder="stand-in"))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="expected a training run, found none"):
        load_policy(PolicyConfig(run=tmp_path))


@pytest.fixture(scope="module")
def encoder():
    return load(tiny_tower(), compute_dtype="float32")


@pytest.fixture(scope="module")
def probe(encoder) -> Probe:
    return make_probe(encoder, np.zeros((0, len(VIEWS), 256, 256, 3), np.uint8))


def train_on(probe: Probe, encoder, folder):
    """Train a policy for a few steps on a store that carries `probe`."""
    store = complete_store(folder / "s.zarr", identity=encoder.identity, probe=probe)
    train([store.path], folder / "run", debug().model_copy(update={"steps": 4}), resume=False)
    return folder / "run"


def test_the_encoder_that_gives_the_probe_its_features_passes(encoder, probe, tmp_path):
    run = train_on(probe, encoder, tmp_path)
    held, agent, step = load_policy(PolicyConfig(run=run, encoder=tiny_tower()))
    assert step == 4
    assert agent.encoder is not None
    carried = read_probe(run, held)
    np.testing.assert_array_equal(carried.frames, probe.frames)
    np.testing.assert_array_equal(carried.features["pooled"], probe.features["pooled"])
    assert (carried.environment, carried.tolerance) == (probe.environment, probe.tolerance)


def test_no_environment_is_built_where_the_probe_has_other_features(encoder, probe, tmp_path):
    """The fingerprint fits, the features do not: one bit is enough on the same engine."""
    pooled = probe.features["pooled"].copy()
    pooled.view(np.uint16)[1, 1, 1] ^= 1
    run = train_on(dataclasses.replace(probe, features={"pooled": pooled}), encoder, tmp_path)
    # The environment does not even exist: the probe is checked before it is asked for.
    config = RolloutConfig(
        run=run, envs=("nowhere/nothing",), out=tmp_path / "out", encoder=tiny_tower()
    )
    with pytest.raises(EncoderMismatchError, match=rf"{run}: .*`noise` of view 1.*all bits"):
        roll_out(config)


def test_a_probe_that_was_swapped_damaged_or_removed_is_refused(encoder, probe, tmp_path):
    run = train_on(probe, encoder, tmp_path / "a")
    other = dataclasses.replace(probe, tolerance=9.0)
    content = (train_on(other, encoder, tmp_path / "b") / PROBE_FILE).read_bytes()
    path = run / PROBE_FILE
    ours = path.read_bytes()
    flipped = bytearray(ours)
    flipped[-1] ^= 1
    for damage, pattern in (
        (content, "expected the probe listed in run.json"),
        (bytes(flipped), "expected the probe listed in run.json"),
        (ours[: len(ours) // 2], "cannot be read"),
    ):
        path.write_bytes(damage)
        with pytest.raises(RunError, match=rf"{path}: .*{pattern}"):
            load_policy(PolicyConfig(run=run))
    path.unlink()
    with pytest.raises(RunError, match=str(path)):
        load_policy(PolicyConfig(run=run))
