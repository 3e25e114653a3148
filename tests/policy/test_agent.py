"""The agent's conditioning contract, and what training reaches."""

import pytest
import torch
from torch import nn

from policy.agent import AgentConfig, VLAAgent
from policy.encoders.siglip2 import STAND_IN, load_backbone
from policy.errors import AgentMismatchError
from policy.network.head import HeadConfig
from policy.network.normalizer import DataStatistics
from policy.objectives.base import Batch, bind
from policy.objectives.improved_meanflow_jump import (
    ImprovedMeanFlowJump,
    ImprovedMeanFlowJumpConfig,
)
from policy.spec import AgentSpec

STATE_DIM, ACTION_DIM = 5, 4
SPEC = AgentSpec(view_names=("front", "top", "r_vis"), state_dim=STATE_DIM, action_dim=ACTION_DIM)


def tiny_agent(projection_dim: int = 8, backbone=None, **settings) -> VLAAgent:
    torch.manual_seed(0)
    head = HeadConfig(n_emb=64, n_layer=1, pred_horizon=8)
    config = AgentConfig(projection_dim=projection_dim, head=head, **settings)
    return VLAAgent(config, SPEC, backbone)


def random_batch(batch: int = 4, horizon: int = 8):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, 2, 3, 768, generator=generator),
        torch.randn(batch, 2, STATE_DIM, generator=generator),
        torch.randn(batch, horizon, ACTION_DIM, generator=generator),
        torch.ones(batch, horizon, dtype=torch.bool),
    )


@pytest.mark.parametrize("projection_dim", [96, 192])
def test_condition_has_the_width_of_the_design(projection_dim):
    agent = tiny_agent(projection_dim)
    features, state, _, _ = random_batch()

    condition = agent._build_cond(features, state)

    assert agent.raw_cond_dim == 3 * projection_dim + STATE_DIM
    assert agent.cond_projector.in_features == 3 * projection_dim + STATE_DIM
    assert condition.shape == (4, 2, 384)


@pytest.mark.parametrize("projection_dim", [96, 192])
def test_condition_equals_the_contract_written_out(projection_dim):
    """Standardise, project each view with its own matrix, append the state, project."""
    agent = tiny_agent(projection_dim)
    features, state, _, _ = random_batch()
    mean, std = torch.randn(3, 768), torch.rand(3, 768) + 0.5
    low, high = -torch.rand(STATE_DIM) - 1, torch.rand(STATE_DIM) + 1
    agent.fit_statistics(
        DataStatistics(mean, std, low, high, torch.zeros(ACTION_DIM), torch.ones(ACTION_DIM))
    )

    parts = []
    for view, project in enumerate(agent.view_projectors.per_view):
        standardised = (features[:, :, view] - mean[view]) / std[view]
        parts.append(standardised @ project.weight.T + project.bias)
    parts.append(2 * (state - low) / (high - low) - 1)
    raw = torch.cat(parts, dim=-1)
    expected = raw @ agent.cond_projector.weight.T + agent.cond_projector.bias

    torch.testing.assert_close(agent._build_cond(features, state), expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_trainable_part_and_never_the_tower():
    encoder = load_backbone(STAND_IN)
    agent = tiny_agent(backbone=encoder)
    with torch.no_grad():
        agent.head.predict.weight.normal_()  # zero at the start, which would hide what is behind
        agent.head.residuals.query.normal_()
    frames = torch.randint(0, 256, (2, 3, 256, 256, 3), dtype=torch.uint8)
    _, state, actions, valid = random_batch(batch=1)

    features = agent.encode_views(frames).float()[None]
    generator = torch.Generator().manual_seed(0)
    agent.compute_loss(features, state, actions, valid, generator).value.backward()

    unreached = [
        name
        for name, parameter in agent.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert unreached == []
    tower = nn.Module.parameters(encoder._tower)
    assert all(parameter.grad is None for parameter in tower)
    assert not any("tower" in name or "backbone" in name for name in agent.state_dict())


def test_a_teacher_reads_the_condition_by_its_own_weights():
    objective = ImprovedMeanFlowJumpConfig()
    agent, teacher = (tiny_agent(objective=objective) for _ in range(2))
    with torch.no_grad():
        for known in (agent, teacher):
            known.head.predict.weight.normal_(generator=torch.Generator().manual_seed(3))
        teacher.cond_projector.weight.mul_(-1.0)  # all that tells them apart
    features, state, actions, valid = random_batch()

    def loss(of: VLAAgent, teacher: VLAAgent | None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return of.compute_loss(features, state, actions, valid, generator, teacher=teacher).value

    cond = teacher._build_cond(features, state)
    known = bind(teacher.head, teacher.head.encode_condition(cond))
    condition = agent.head.encode_condition(agent._build_cond(features, state))
    normalized = agent.action_normalizer.normalize(actions)
    generator = torch.Generator().manual_seed(0)
    batch = Batch(normalized, valid, condition, generator)
    expected = ImprovedMeanFlowJump(objective).loss(agent.head, batch, teacher=known)
    assert torch.equal(loss(agent, teacher), expected.value)
    assert not torch.equal(loss(agent, teacher), loss(agent, None))
    assert torch.equal(loss(agent, agent), loss(agent, None))


def test_agent_without_encoder_takes_no_frames():
    with pytest.raises(AgentMismatchError, match="no encoder"):
        tiny_agent().encode_views(torch.zeros(1, 3, 256, 256, 3, dtype=torch.uint8))


def test_predicted_actions_come_back_in_physical_units():
    """An untrained head answers its noise, so the noise's scale shows the unnormalisation."""
    agent = tiny_agent()
    features, state, _, _ = random_batch()
    low, high = torch.tensor([0.0, -3.0, 5.0, 2.0]), torch.tensor([1.0, 3.0, 25.0, 2.0])
    agent.fit_statistics(
        DataStatistics(
            torch.zeros(3, 768),
            torch.ones(3, 768),
            -torch.ones(STATE_DIM),
            torch.ones(STATE_DIM),
            low,
            high,
        )
    )
    noise = agent.noise(4, torch.Generator().manual_seed(0))

    actions = agent.predict(features, state, noise)

    half_range = torch.tensor([0.5, 3.0, 10.0, 1.0])  # the last dimension is constant
    center = torch.tensor([0.5, 0.0, 15.0, 2.0])
    torch.testing.assert_close(actions, noise[:, 0] * half_range + center)


def test_executing_more_steps_than_predicted_is_refused():
    with pytest.raises(ValueError, match="num_action_steps=9"):
        AgentConfig(num_action_steps=9, head=HeadConfig(pred_horizon=8))


def test_defaults_are_the_designs():
    config = AgentConfig()
    assert (config.head.n_emb, config.head.n_layer, config.head.pred_horizon) == (384, 12, 16)
    assert (config.num_action_steps, config.obs_horizon) == (8, 2)
    assert (config.cond_dim, config.projection_dim) == (384, 96)


def test_views_need_distinct_names():
    with pytest.raises(ValueError, match="distinct"):
        AgentSpec(view_names=("top", "top"), state_dim=1, action_dim=1)


def test_one_pass_decides_what_the_cached_condition_decides():
    """The live path of one-step policies against the path of training, in float32."""
    agent = tiny_agent()
    with torch.no_grad():
        agent.head.predict.weight.normal_(std=0.1)
        agent.head.residuals.query.normal_()
    features, state, _, _ = random_batch()
    noise = agent.noise(4, torch.Generator().manual_seed(0))
    condition = agent.head.encode_condition(agent._build_cond(features, state))
    expected = agent.objective.sample(bind(agent.head, condition), noise, 1)
    torch.testing.assert_close(agent.predict(features, state, noise), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", [{"positions": "learned"}, {"residuals": "prenorm"}, {}])
def test_weight_decay_is_for_matrices_only(head):
    """Vectors, queries, gains and positions stay; every weight of a linear layer decays."""
    config = HeadConfig(n_emb=64, n_layer=1, pred_horizon=8, **head)
    agent = VLAAgent(AgentConfig(projection_dim=8, head=config), SPEC)
    linear = [module for module in agent.modules() if isinstance(module, nn.Linear)]
    decayed, others = agent.decay_groups()
    assert {id(p) for p in decayed} == {id(layer.weight) for layer in linear}
    assert {id(p) for p in [*decayed, *others]} == {id(p) for p in agent.parameters()}
    assert len(decayed) + len(others) == len(list(agent.parameters()))
