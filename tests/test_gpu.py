"""The contracts of encoder, training and rollout on a GPU."""

import pytest
import torch

from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.identity.verify import verify_store
from pipeline.rollout.play.loop import RolloutConfig, roll_out
from pipeline.training.presets import debug
from pipeline.training.run.checkpoint import read_average
from pipeline.training.session import train
from tests.pipeline.rollout.toy_run import EPISODES, STEPS, record, write_env
from tests.policy.encoders import test_contract
from tests.test_new_encoder import Dying
from tests.tower import tiny_tower

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


class TestSiglip2OnGpu(test_contract.TestSiglip2Checkpoint):
    device = torch.device(DEVICE)


class TestEfficientNetOnGpu(test_contract.TestEfficientNet):
    device = torch.device(DEVICE)


def test_what_was_cached_is_seen_live_and_training_resumes_to_the_same_bits(tmp_path):
    manifest, store = record(tmp_path / "recorded"), tmp_path / "s.zarr"
    embed_dataset(EmbedConfig(manifest=manifest, store=store, encoder=tiny_tower(), device=DEVICE))
    sample = EPISODES * STEPS
    found = verify_store(store, None, sample=sample, seed=0, encoder=tiny_tower(), device=DEVICE)
    assert found.num_exact_steps == found.num_steps == sample
    config, runs = debug(), [tmp_path / "whole", tmp_path / "resumed"]
    train([store], runs[0], config, resume=False, device=DEVICE)
    with pytest.raises(KeyboardInterrupt):
        train([store], runs[1], config, resume=False, device=DEVICE, watchers=[Dying()])
    train([store], runs[1], config, resume=True, device=DEVICE)
    (_, whole), (_, resumed) = (read_average(run, config.steps) for run in runs)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    env = write_env(tmp_path / "env.toml", package=None)
    result = roll_out(
        RolloutConfig(
            run=runs[0],
            envs=(env,),
            out=tmp_path / "rollout",
            episodes=2,
            videos="none",
            encoder=tiny_tower(),
            device=DEVICE,
            camera_check="warn",
        )
    )
    assert [episode.failure for episode in result.episodes] == [None, None]
