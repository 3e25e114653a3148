"""The gate: every planted mismatch is refused before an environment is stepped."""

import pytest

from pipeline.errors import EncoderMismatchError, EnvError, RunError
from pipeline.rollout.envs.base import StepResult
from pipeline.rollout.gate import check_env, load_policy, load_same_encoder
from pipeline.training.checkpoint import DataIdentity, RunDescription
from pipeline.training.presets import debug
from pipeline.training.trainer import train
from policy.spec import AgentSpec, EncoderIdentity
from tests.pipeline.tiny import complete_store, tiny_identity


class StillEnv:
    """A robot that must not be moved."""

    name = "still"
    max_steps = 10

    def __init__(self, view_names=("front", "top"), state_dim=5, action_dim=4, control_hz=50.0):
        self.view_names = view_names
        self.state_dim = state_dim
        self.action_dim = action_dim
        self.control_hz = control_hz

    def reset(self, seed: int) -> None:
        raise AssertionError("reset before the gate")

    def render(self):
        raise AssertionError("rendered before the gate")

    def state(self):
        raise AssertionError("read before the gate")

    def step(self, action) -> StepResult:
        raise AssertionError("moved before the gate")

    def close(self) -> None:
        pass


def description() -> RunDescription:
    return RunDescription(
        config=debug(),
        spec=AgentSpec(view_names=("front", "top"), state_dim=5, action_dim=4),
        data=DataIdentity(
            name="tiny", store_digest="0", fps=50.0, encoder=tiny_identity(), manifest={}
        ),
    )


def test_the_environment_of_the_recordings_passes():
    check_env(description(), StillEnv())


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"view_names": ("top", "front")}, "views is"),
        ({"view_names": ("front", "side")}, "views is"),
        ({"state_dim": 6}, "state width is 6"),
        ({"action_dim": 7}, "action width is 7"),
        ({"control_hz": 20.0}, r"control rate in Hz is 20\.0, .* trained with 50\.0"),
    ],
)
def test_another_environment_is_refused(settings, pattern):
    with pytest.raises(EnvError, match=pattern):
        check_env(description(), StillEnv(**settings))


def test_a_run_trained_on_another_encoders_features_is_refused(tmp_path):
    """The tiny store says that an encoder with another fingerprint made its features."""
    store = complete_store(tmp_path / "s.zarr")
    train(store.path, tmp_path / "run", debug(), resume=False)
    with pytest.raises(EncoderMismatchError, match="stand-in is another encoder"):
        load_policy(tmp_path / "run", backbone="stand-in")


def test_an_encoder_from_a_local_folder_must_be_named():
    local = EncoderIdentity(
        name="my-siglip2",
        revision="local",
        pretrained=True,
        compute_dtype="float32",
        fingerprint="f" * 64,
    )
    with pytest.raises(EncoderMismatchError, match=r"local folder my-siglip2.*--backbone"):
        load_same_encoder(local, None, where="run")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="no training run here"):
        load_policy(tmp_path, backbone=None)
