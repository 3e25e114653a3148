"""Every objective keeps the contract; the registry builds each from its kind."""

import json

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from policy.agent import AgentConfig
from policy.objectives.base import bind
from policy.objectives.deterministic import MipConfig, RegressionConfig
from policy.objectives.diffusion import DiffusionConfig
from policy.objectives.flow_matching import FlowMatchingConfig
from policy.objectives.improved_meanflow_jump import ImprovedMeanFlowJumpConfig
from policy.objectives.meanflow import ImprovedMeanFlowConfig, MeanFlowConfig
from policy.objectives.registry import ObjectiveConfig, build_objective
from tests.forked import start
from tests.policy.objectives.objective_contract import (
    ObjectiveContract,
    random_condition,
    random_noise,
    small_head,
)
from tests.policy.test_agent import random_batch, tiny_agent

KINDS = [
    "improved_meanflow",
    "improved_meanflow_jump",
    "meanflow",
    "flow_matching",
    "diffusion",
    "regression",
    "mip",
]


class TestBoundaryTangent(ObjectiveContract):
    config = ImprovedMeanFlowConfig()


class TestVelocityHead(ObjectiveContract):
    config = ImprovedMeanFlowConfig(tangent="velocity_head")


class TestJump(ObjectiveContract):
    config = ImprovedMeanFlowJumpConfig()
    refused_evaluations = (0, -1, 2)


class TestMeanFlow(ObjectiveContract):
    config = MeanFlowConfig(anchored_share=0.1)  # the default never trains the one-step query


class TestFlowMatching(ObjectiveContract):
    config = FlowMatchingConfig()


class TestDdim(ObjectiveContract):
    config = DiffusionConfig(sampler="ddim")
    refused_evaluations = (0, -1, 3, 200)


class TestDdpm(ObjectiveContract):
    config = DiffusionConfig(sampler="ddpm", num_train_timesteps=10)  # 10 passes, not 100
    refused_evaluations = (0, -1, 3, 11)


class TestRegression(ObjectiveContract):
    config = RegressionConfig()
    refused_evaluations = (0, 2)
    unreached = frozenset({"embed_action.weight"})


class TestMip(ObjectiveContract):
    config = MipConfig()
    refused_evaluations = (1, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_is_its_kind_and_survives_the_disk(kind):
    config = AgentConfig.model_validate({"objective": {"kind": kind}})
    saved = json.loads(json.dumps(config.model_dump(mode="json")))
    assert AgentConfig.model_validate(saved) == config
    assert saved["objective"]["kind"] == kind
    assert type(build_objective(config.objective).config) is type(config.objective)


def test_a_field_of_another_kind_is_refused():
    with pytest.raises(ValidationError, match="flow_share"):
        TypeAdapter(ObjectiveConfig).validate_python({"kind": "mip", "flow_share": 0.5})


def test_runs_from_before_there_was_a_choice_still_load():
    old = {
        "kind": "improved_meanflow",
        "time_logit_mean": -0.4,
        "time_logit_std": 1.0,
        "flow_share": 0.5,
        "anchored_share": 0.2,
        "weight_power": 1.0,
        "weight_constant": 0.01,
    }
    assert AgentConfig.model_validate({"objective": old}) == AgentConfig()


@pytest.mark.parametrize(
    ("config", "evaluations"),
    [
        (ImprovedMeanFlowConfig(), 1),
        (ImprovedMeanFlowJumpConfig(), 1),
        (MeanFlowConfig(), 1),
        (FlowMatchingConfig(), 10),
        (DiffusionConfig(sampler="ddim"), 10),
        (DiffusionConfig(sampler="ddpm"), 100),
        (RegressionConfig(), 1),
        (MipConfig(), 2),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_an_agent_predicts_at_the_default_nfe_of_its_objective(config, evaluations):
    agent = tiny_agent(objective=config).eval()
    features, state, _, _ = random_batch()
    noise = agent.noise(4, torch.Generator().manual_seed(0))
    assert agent.evaluations(None) == evaluations
    assert len(noise) == 4
    chunk = agent.predict(features, state, noise)
    assert chunk.shape == (4, 8, 4)
    assert torch.equal(chunk, agent.predict(features, state, noise, evaluations))


@pytest.mark.parametrize(
    ("config_type", "evaluations"),
    [
        (ImprovedMeanFlowConfig, 2),
        (ImprovedMeanFlowJumpConfig, 1),
        (MeanFlowConfig, 2),
        (FlowMatchingConfig, 2),
    ],
)
def test_sampling_from_zero_ignores_the_noise(config_type, evaluations):
    gaussian = build_objective(config_type())
    zero = build_objective(config_type(start="zero"))
    head = small_head(gaussian, torch.float64)
    network, noise = bind(head, random_condition(head, 2)), random_noise(gaussian, 2)
    drawn = zero.sample(network, noise, evaluations)
    assert torch.equal(drawn, gaussian.sample(network, torch.zeros_like(noise), evaluations))
    assert not torch.allclose(drawn, gaussian.sample(network, noise, evaluations))


def test_diffusion_without_its_library_says_what_to_install(tmp_path):
    """In a process of its own, where the library is hidden before anything imports it."""
    code = (
        "import sys; import policy.agent; assert 'diffusers' not in sys.modules\n"
        "sys.modules['diffusers'] = None\n"
        "from policy.errors import VlaError\n"
        "from policy.objectives.diffusion import DiffusionConfig\n"
        "from policy.objectives.registry import build_objective\n"
        "try: build_objective(DiffusionConfig())\n"
        "except VlaError as error: print(error)\n"
    )
    process = start(code, output=tmp_path / "said.txt")
    process.join(60)
    said = (tmp_path / "said.txt").read_text()
    assert process.exitcode == 0, said
    assert "'.[baselines]'" in said
    assert "diffusers" in said
