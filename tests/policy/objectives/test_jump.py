"""The jump's target against the closed form of Gaussian data, and what is learnt from it."""

import pytest
import torch
from pydantic import ValidationError

from policy.network.ema import WeightAverage
from policy.network.head import ActionHead, HeadConfig
from policy.objectives import improved_meanflow_jump as jump
from policy.objectives.base import Batch, bind
from policy.objectives.improved_meanflow_jump import (
    ImprovedMeanFlowJump,
    ImprovedMeanFlowJumpConfig,
)
from tests.policy.network.test_head import ACTION_DIM, HORIZON, random_head, random_inputs
from tests.policy.objectives.analytic import NO_CONDITION, GaussianFlow, JvpNetwork
from tests.policy.objectives.objective_contract import generator
from tests.policy.objectives.test_improved_meanflow import gradients

MEAN, SPREAD = 0.7, 0.3
FLOW = GaussianFlow(MEAN, SPREAD)


def exact_velocity(z, t, h):
    return FLOW.velocity(z, t[:, None, None])


def exact_average(z, t, h):
    return FLOW(z, t, h, NO_CONDITION)


def both(velocity, average):
    """A network of two outputs, side by side: the average velocity first."""
    return lambda *at: torch.cat([average(*at), velocity(*at)], dim=-1)


EXACT = both(exact_velocity, exact_average)


def points(count: int = 64):
    stream = generator()
    z = torch.randn(count, 4, 2, generator=stream).double()
    t = 0.1 + 0.9 * torch.rand(count, generator=stream).double()
    return z, t, t * torch.rand(count, generator=stream).double()


def shares(count: int = 64):
    return jump.draw_shares_left(count, generator())


def test_the_exact_flow_is_its_own_target():
    """But for the midpoint rule: 0.013 where u itself reaches 3."""
    target = jump.jump_target(EXACT, points(), shares())
    torch.testing.assert_close(target, exact_average(*points()), rtol=0, atol=0.015)


def test_shorter_jumps_come_closer_by_the_order_of_the_rule():
    """The midpoint rule is of second order: half the length, a quarter of the error at most."""
    z, t, h = points()
    errors = []
    for part in (1.0, 0.5, 0.25):
        at = z, t, part * h
        target = jump.jump_target(EXACT, at, shares())
        errors.append(float((target - exact_average(*at)).abs().max()))
    assert errors[0] > 4 * errors[1] > 16 * errors[2] > 0


def test_the_target_tells_a_wrong_average_and_a_wrong_velocity():
    """A wrong u counts by the share that is left to it, a wrong velocity by the other."""
    exact = jump.jump_target(EXACT, points(), shares())
    wrong_average = both(exact_velocity, lambda *at: exact_average(*at) + 1.0)
    wrong_rest = jump.jump_target(wrong_average, points(), shares())
    left = wrong_rest - exact
    torch.testing.assert_close(left, shares().double()[:, None, None].expand_as(left))
    standing = both(lambda z, t, h: torch.zeros_like(z), lambda z, t, h: torch.ones_like(z))
    still = jump.jump_target(standing, points(), shares())
    torch.testing.assert_close(still, left)


def test_an_item_without_a_span_has_the_velocity_as_its_target():
    z, t, _ = points()
    target = jump.jump_target(EXACT, (z, t, torch.zeros_like(t)), shares())
    torch.testing.assert_close(target, exact_velocity(z, t, t))


def test_the_average_is_evaluated_where_the_jump_ends():
    """r stays: what is left, h' = s - r, and the times stay inside [r, t]."""
    z, t, h = points()
    evaluated = []

    def remember(z, now, rest):
        evaluated.append((now, rest))
        return torch.zeros_like(z).repeat(1, 1, 2)

    jump.jump_target(remember, (z, t, h), shares())
    assert len(evaluated) == 2 * jump.MIDPOINT_STEPS + 1
    for now, rest in evaluated:
        torch.testing.assert_close(now - rest, t - h)
    torch.testing.assert_close(evaluated[-1][1] / h, shares().double())


def test_the_shares_fill_their_range():
    low, high = jump.SHARE_LEFT
    drawn = shares(1_000)
    assert low <= float(drawn.min()) < low + 0.01 < high - 0.01 < float(drawn.max()) <= high


@pytest.mark.parametrize("is_self_taught", [True, False], ids=["alone", "taught"])
def test_the_loss_is_the_error_to_a_target_without_gradient(is_self_taught):
    """Written out: u learns from the target network's jump, the velocity from the data.

    The error to the jump is under the adaptive weight, and that to the noisy e - x is not.
    """
    config = ImprovedMeanFlowJumpConfig(weight_constant=0.2, velocity_weight=0.5)
    objective = ImprovedMeanFlowJump(config)
    head = random_head(torch.float64, num_outputs=objective.num_outputs)
    _, _, _, cond = random_inputs(8, torch.float64)
    actions = torch.randn(8, HORIZON, ACTION_DIM, generator=generator(3)).double()
    valid = torch.ones(8, HORIZON, dtype=torch.bool)

    known, teacher = head, None
    if not is_self_taught:
        known = random_head(torch.float64, num_outputs=objective.num_outputs)
        with torch.no_grad():
            for parameter in known.parameters():
                parameter.mul_(0.9)
        teacher = bind(known, known.encode_condition(cond))
    batch = Batch(actions, valid, head.encode_condition(cond), generator(), teacher)
    loss = objective.loss(head, batch)

    stream = generator()
    noise = torch.randn(actions.shape, generator=stream).double()
    t = torch.cat([torch.rand(6, generator=stream), torch.ones(2)]).double()
    left = jump.draw_shares_left(8, stream)
    z = actions + t[:, None, None] * (noise - actions)
    with torch.no_grad():
        rows = known.encode_condition(cond)
        target = jump.jump_target(bind(known, rows), (z, t, t), left)
    average, velocity = head(z, t, t, head.encode_condition(cond)).split(ACTION_DIM, dim=-1)
    error = (average - target).square().mean(dim=(1, 2))
    weight = (error.detach() + 0.2) ** -0.5
    velocity_error = (velocity - (noise - actions)).square().mean()
    by_hand = (weight * error).mean() + 0.5 * velocity_error
    assert float(loss.figures["raw_mse"]) == pytest.approx(velocity_error.item())
    assert float(loss.figures["jump_mse"]) == pytest.approx(error.mean().item())
    torch.testing.assert_close(loss.value, by_hand)
    torch.testing.assert_close(gradients(loss.value, head), gradients(by_hand, head))
    if not is_self_taught:
        assert not gradients(loss.value, known).numel()
    assert (target - (noise - actions)).abs().min() > 0


@pytest.mark.parametrize("setting", ["velocity_weight=0", "noise_share=1"])
def test_jumps_that_would_learn_nothing_are_refused(setting):
    """Without the velocity, nothing sees the data; at t = 1 alone, jumps land at untrained t."""
    name, value = setting.split("=")
    with pytest.raises(ValidationError, match=name):
        ImprovedMeanFlowJumpConfig(**{name: float(value)})


@pytest.mark.parametrize("batch", [1, 2, 128])
def test_some_item_is_always_where_jumps_land(batch):
    """However the share rounds: the last items are at t = 1, and never all of them."""
    times = []

    @JvpNetwork
    def remember(z, t, h):
        times.append(t)
        return torch.zeros(batch, 4, 4)

    actions, valid = torch.zeros(batch, 4, 2), torch.ones(batch, 4, dtype=torch.bool)
    objective = ImprovedMeanFlowJump(ImprovedMeanFlowJumpConfig(noise_share=0.999))
    objective.loss(remember, Batch(actions, valid, NO_CONDITION, generator()))
    assert (times[0] == 1).sum() == batch - 1


@pytest.mark.usefixtures("unchecked")  # half of the time
def test_a_jump_learns_data_that_only_its_velocity_has_seen():
    """No item has h = 0: from the zeros that a head starts with, to the data's mean and spread."""
    torch.manual_seed(0)
    objective = ImprovedMeanFlowJump(ImprovedMeanFlowJumpConfig())
    config = HeadConfig(n_emb=64, n_layer=1, pred_horizon=1)
    head = ActionHead(config, cond_dim=1, num_cond_tokens=1, action_dim=1, num_outputs=2)
    average = WeightAverage(head)
    teacher = average.mirror(head)
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=200)
    stream, cond, valid = generator(), torch.zeros(128, 1, 1), torch.ones(128, 1, dtype=torch.bool)
    for step in range(200):
        actions = MEAN + SPREAD * torch.randn(128, 1, 1, generator=stream)
        target = bind(teacher, teacher.encode_condition(cond))
        batch = Batch(actions, valid, head.encode_condition(cond), stream, target)
        loss = objective.loss(head, batch)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        schedule.step()
        average.update(head, step)
    head.load_state_dict(average.averaged)
    noise = torch.randn(512, 1, 1, 1, generator=stream)
    drawn = objective.sample(bind(head, head.encode_condition(torch.zeros(512, 1, 1))), noise, 1)
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.1)
    assert float(drawn.std()) == pytest.approx(SPREAD, abs=0.1)
