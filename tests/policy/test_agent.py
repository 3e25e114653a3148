"""The agent's conditioning contract, and what training reaches."""

import numpy as np
import pytest
import torch
from torch import nn

from policy.agent import AgentConfig, VLAAgent
from policy.errors import AgentMismatchError
from policy.network.head import HeadConfig
from policy.network.normalizer import DataStatistics
from policy.network.readers import InstructionReaderConfig, ReaderConfig
from policy.objectives.base import Batch, bind
from policy.objectives.improved_meanflow_jump import (
    ImprovedMeanFlowJump,
    ImprovedMeanFlowJumpConfig,
)
from policy.spec import AgentSpec
from tests.policy.scales import between, plain_statistics
from tests.tower import load

STATE_DIM, ACTION_DIM = 5, 4
POOLED, GRID = (768,), (2, 3, 7)
SPEC = AgentSpec(
    view_names=("front", "top", "r_vis"),
    feature_shapes={"pooled": POOLED, "grid": GRID},
    state_dim=STATE_DIM,
    action_dim=ACTION_DIM,
)
UNSCALED_STATE = between(-torch.ones(STATE_DIM), torch.ones(STATE_DIM))


def tiny_agent(projection_dim: int = 8, encoder=None, **settings) -> VLAAgent:
    torch.manual_seed(0)
    head = HeadConfig(n_emb=64, n_layer=1, pred_horizon=8)
    readers = {"pooled": ReaderConfig(projection_dim=projection_dim)}
    config = AgentConfig(**{"readers": readers, "head": head} | settings)
    return VLAAgent(config, SPEC, encoder)


def random_batch(batch: int = 4, horizon: int = 8):
    generator = torch.Generator().manual_seed(0)
    return (
        {"pooled": torch.randn(batch, 2, 3, *POOLED, generator=generator)},
        torch.randn(batch, 2, STATE_DIM, generator=generator),
        torch.randn(batch, horizon, ACTION_DIM, generator=generator),
        torch.ones(batch, horizon, dtype=torch.bool),
    )


@pytest.mark.parametrize("projection_dim", [96, 192])
def test_condition_has_the_width_of_the_design(projection_dim):
    agent = tiny_agent(projection_dim)
    features, state, _, _ = random_batch()

    condition = agent._build_cond(features, state)

    assert agent.cond_projector.in_features == 3 * projection_dim + STATE_DIM
    assert condition.shape == (4, 2, 384)


@pytest.mark.parametrize("projection_dim", [96, 192])
def test_condition_equals_the_contract_written_out(projection_dim):
    """Standardize, project each view with its own matrix, append the state, project."""
    agent = tiny_agent(projection_dim)
    features, state, _, _ = random_batch()
    mean, std = torch.randn(3, 768), torch.rand(3, 768) + 0.5
    low, high = -torch.rand(STATE_DIM) - 1, torch.rand(STATE_DIM) + 1
    agent.fit_statistics(
        DataStatistics(
            {"pooled": mean},
            {"pooled": std},
            between(low, high),
            between(torch.zeros(ACTION_DIM), torch.ones(ACTION_DIM)),
        )
    )
    state = state.clamp(low, high)

    parts = []
    for view, project in enumerate(agent.readers["pooled"].per_view):
        standardized = (features["pooled"][:, :, view] - mean[view]) / std[view]
        parts.append(standardized @ project.weight.T + project.bias)
    parts.append(2 * (state - low) / (high - low) - 1)
    raw = torch.cat(parts, dim=-1)
    expected = raw @ agent.cond_projector.weight.T + agent.cond_projector.bias

    torch.testing.assert_close(agent._build_cond(features, state), expected, rtol=1e-4, atol=1e-4)


def test_two_features_enter_one_after_the_other_and_the_state_last():
    """Pooled vectors of every view, then flattened grids of every view, then the state."""
    readers = {"pooled": ReaderConfig(projection_dim=8), "grid": ReaderConfig(projection_dim=5)}
    agent = tiny_agent(readers=readers)
    features, state, _, _ = random_batch()
    generator = torch.Generator().manual_seed(1)
    features["grid"] = torch.randn(4, 2, 3, *GRID, generator=generator)
    state = state / state.abs().max()  # inside the range of the unfitted scale

    parts = []
    for name in ("pooled", "grid"):
        for view, project in enumerate(agent.readers[name].per_view):
            parts.append(features[name][:, :, view].flatten(2) @ project.weight.T + project.bias)
    raw = torch.cat([*parts, state], dim=-1)
    expected = raw @ agent.cond_projector.weight.T + agent.cond_projector.bias

    assert agent.cond_projector.in_features == raw.shape[-1] == 3 * (8 + 5) + STATE_DIM
    torch.testing.assert_close(agent._build_cond(features, state), expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_trainable_part_and_never_the_encoder():
    encoder = load("stand-in", features=("pooled",))
    agent = tiny_agent(encoder=encoder)
    with torch.no_grad():
        agent.head.predict.weight.normal_()  # zero at the start, which would hide what is behind
        agent.head.residuals.query.normal_()
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 256, 256, 3), np.uint8)
    _, state, actions, valid = random_batch(batch=1)

    features = {name: values[None] for name, values in agent.encode_views(images).items()}
    generator = torch.Generator().manual_seed(0)
    agent.compute_loss(features, state, actions, valid, generator).value.backward()

    unreached = [
        name
        for name, parameter in agent.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert unreached == []
    network = nn.Module.parameters(encoder._network)
    assert all(parameter.grad is None for parameter in network)
    parts = {name.split(".")[0] for name in agent.state_dict()}
    normalizers = {"state_normalizer", "action_normalizer"}
    assert parts == {"readers", "cond_projector", "head"} | normalizers


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
    batch = Batch(normalized, valid, condition, generator, known)
    expected = ImprovedMeanFlowJump(objective).loss(agent.head, batch)
    assert torch.equal(loss(agent, teacher), expected.value)
    assert not torch.equal(loss(agent, teacher), loss(agent, None))
    assert torch.equal(loss(agent, agent), loss(agent, None))


def test_agent_without_encoder_takes_no_images():
    with pytest.raises(AgentMismatchError, match="no encoder"):
        tiny_agent().encode_views(np.zeros((1, 3, 256, 256, 3), np.uint8))


def fit_actions(agent: VLAAgent, low: list[float], high: list[float]) -> None:
    action = between(torch.tensor(low), torch.tensor(high))
    shapes = {"pooled": POOLED}
    agent.fit_statistics(plain_statistics(shapes, views=3, state=UNSCALED_STATE, action=action))


def test_predicted_actions_come_back_in_physical_units_near_the_range():
    """An untrained head answers its noise, so the noise's scale shows the unnormalization."""
    agent = tiny_agent()
    features, state, _, _ = random_batch()
    fit_actions(agent, low=[0.0, -3.0, 5.0, -2.0], high=[1.0, 3.0, 25.0, 2.0])
    noise = agent.noise(4, torch.Generator().manual_seed(0))

    actions = agent.predict(features, state, noise)

    half_range = torch.tensor([0.5, 3.0, 10.0, 2.0])
    center = torch.tensor([0.5, 0.0, 15.0, 0.0])
    assert noise.abs().max() > 1.5
    torch.testing.assert_close(actions, noise[:, 0].clamp(-1.5, 1.5) * half_range + center)


def test_an_action_that_was_constant_is_answered_exactly_whatever_the_head_predicts():
    agent = tiny_agent()
    with torch.no_grad():
        agent.head.predict.weight.normal_(std=10.0)
    features, state, _, _ = random_batch()
    fit_actions(agent, low=[0.1, -3.0, 5.0, -1.7], high=[0.1, 3.0, 25.0, -1.7])
    actions = agent.predict(features, state, agent.noise(4, torch.Generator().manual_seed(0)))
    assert (actions[..., 0] == torch.tensor(0.1)).all()
    assert (actions[..., 3] == torch.tensor(-1.7)).all()
    assert actions[..., 1].std() > 1


def test_a_state_that_was_constant_has_no_influence_and_a_wild_one_a_bounded_one():
    agent = tiny_agent()
    features, state, _, _ = random_batch()
    low, high = -torch.ones(STATE_DIM), torch.ones(STATE_DIM)
    low[2] = high[2] = 0.3
    action = between(torch.zeros(ACTION_DIM), torch.ones(ACTION_DIM))
    known = between(low, high)
    shapes = {"pooled": POOLED}
    agent.fit_statistics(plain_statistics(shapes, views=3, state=known, action=action))
    expected = agent._build_cond(features, state)
    changed = state.clone()
    changed[..., 2] = torch.randn(4, 2) * 1e6
    assert torch.equal(agent._build_cond(features, changed), expected)
    conditions = []
    for wild in (1.5, 4096.0, 1e9):
        changed[..., 1] = wild
        conditions.append(agent._build_cond(features, changed))
    assert torch.equal(conditions[0], conditions[1])
    assert torch.equal(conditions[0], conditions[2])


def test_executing_more_steps_than_predicted_is_refused():
    with pytest.raises(ValueError, match="num_action_steps: expected 1 to 8"):
        AgentConfig(num_action_steps=9, head=HeadConfig(pred_horizon=8))


def test_defaults_are_the_designs():
    config = AgentConfig()
    assert (config.head.n_emb, config.head.n_layer, config.head.pred_horizon) == (384, 12, 16)
    assert (config.num_action_steps, config.obs_horizon) == (8, 2)
    assert config.cond_dim == 384
    assert config.readers == {"pooled": ReaderConfig(projection_dim=96)}
    assert (config.state_scaling, config.action_scaling) == ("range", "range")


def test_one_pass_decides_what_the_cached_condition_decides():
    """The live path of one-step policies against the path of training, in float32."""
    agent = tiny_agent()
    with torch.no_grad():
        agent.head.predict.weight.normal_(std=0.1)
        agent.head.residuals.query.normal_()
    features, state, _, _ = random_batch()
    noise = agent.noise(4, torch.Generator().manual_seed(0))
    condition = agent.head.encode_condition(agent._build_cond(features, state))
    expected = agent.objective.sample(bind(agent.head, condition), noise, 1).clamp(-1.5, 1.5)
    torch.testing.assert_close(agent.predict(features, state, noise), expected, rtol=0, atol=1e-5)


def test_weight_decay_is_for_matrices_only():
    """Vectors, queries and gains stay; every weight of a linear layer decays."""
    agent = tiny_agent()
    linear = [module for module in agent.modules() if isinstance(module, nn.Linear)]
    decayed, others = agent.decay_groups()
    assert {id(p) for p in decayed} == {id(layer.weight) for layer in linear}
    assert {id(p) for p in [*decayed, *others]} == {id(p) for p in agent.parameters()}
    assert len(decayed) + len(others) == len(list(agent.parameters()))


TOLD = SPEC.model_copy(update={"instruction_dim": 6})


def told_agent(**settings) -> VLAAgent:
    torch.manual_seed(0)
    config = AgentConfig(
        readers={"pooled": ReaderConfig(projection_dim=8)},
        head=HeadConfig(n_emb=64, n_layer=1, pred_horizon=8),
        language=InstructionReaderConfig(**settings),
    )
    agent = VLAAgent(config, TOLD)
    vectors = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)) + 5
    agent.language.fit(vectors)
    return agent


def test_an_instruction_has_a_token_before_those_of_the_steps():
    agent = told_agent()
    features, state, _, _ = random_batch()
    words = torch.randn(4, 6)
    tokens = agent._build_cond({**features, "instruction": words}, state)
    assert tokens.shape == (4, 3, 384)
    reader = agent.language
    expected = reader.token((words - reader.mean) / reader.spread)
    torch.testing.assert_close(tokens[:, 0], expected)
    # Nothing is modulated before training, so that the steps' tokens are those without words.
    views = agent.readers["pooled"](features["pooled"]).flatten(start_dim=2)
    raw = torch.cat([views, agent.state_normalizer.normalize(state)], dim=-1)
    torch.testing.assert_close(tokens[:, 1:], agent.cond_projector(raw))


def test_training_changes_how_an_instruction_modulates_views_and_its_token():
    for settings in ({}, {"modulates_views": False}):
        agent = told_agent(**settings)
        features, state, actions, valid = random_batch()
        torch.nn.init.normal_(agent.head.predict.weight)
        loss = agent.compute_loss(
            {**features, "instruction": torch.randn(4, 6)},
            state,
            actions,
            valid,
            torch.Generator().manual_seed(0),
        )
        loss.value.backward()
        parts = [agent.language.token, agent.language.modulation]
        gradients = [part.weight.grad.abs().sum() > 0 for part in parts if part is not None]
        assert gradients == [True] * (1 + agent.config.language.modulates_views)


def test_what_all_instructions_share_is_taken_away_and_one_instruction_is_zero():
    reader = told_agent().language
    vectors = torch.tensor([[5.0, 5, 5, 5, 5, 6], [5, 5, 5, 5, 5, 4]])
    reader.fit(vectors)
    np.testing.assert_allclose(reader.mean, [5] * 6)
    np.testing.assert_allclose(reader.spread, np.sqrt(2 / 12), rtol=1e-6)
    reader.fit(vectors[:1])
    assert reader.spread == 1
    assert ((vectors[:1] - reader.mean) == 0).all()
