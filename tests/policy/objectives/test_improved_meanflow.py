"""Improved MeanFlow and what it shares with MeanFlow, against the closed form of Gaussian data."""

import pytest
import torch

from policy.objectives.base import Batch
from policy.objectives.meanflow import ImprovedMeanFlowConfig, MeanFlow, sample_times
from tests.policy.network.test_head import ACTION_DIM, HORIZON, random_head, random_inputs
from tests.policy.objectives.analytic import (
    NO_CONDITION,
    GaussianFlow,
    JvpNetwork,
    forward_mode_derivative,
)
from tests.policy.objectives.objective_contract import generator

MEAN, SPREAD = 0.7, 0.3


def objective(**settings) -> MeanFlow:
    return MeanFlow(ImprovedMeanFlowConfig(**settings))


def boundary(head, z: torch.Tensor, t: torch.Tensor, condition=NO_CONDITION) -> torch.Tensor:
    """The boundary tangent written out: u(z, t, 0)."""
    return head(z, t, torch.zeros_like(t), condition)


def double_inputs(batch: int):
    z, t, h, _ = random_inputs(batch, torch.float64)
    return z, 0.1 + 0.9 * t, h


def test_derivative_satisfies_the_identity_on_gaussian_data():
    """u = v - h du/dt, exactly, only with the tangent (v, 1, 1)."""
    flow = GaussianFlow(MEAN, SPREAD)
    z, t, h = double_inputs(16)
    h = h.clamp_min(0.05).minimum(t)

    derivative = flow.derivative(z, t, h, NO_CONDITION, boundary(flow, z, t))

    velocity = flow.velocity(z, t[:, None, None])
    residual = flow(z, t, h, NO_CONDITION) + h[:, None, None] * derivative - velocity
    assert residual.abs().max() < 1e-9


@pytest.mark.parametrize("tangent", [(1.0, 0.0), (0.0, 1.0)])
def test_the_wrong_tangent_order_breaks_the_identity(tangent):
    """The commonest bug: dt and dh not both 1. The identity above must be able to see it."""
    flow = GaussianFlow(MEAN, SPREAD)
    z, t, h = double_inputs(16)
    h = h.clamp_min(0.05).minimum(t)
    velocity = flow.velocity(z, t[:, None, None])
    _, derivative = torch.func.jvp(
        flow, (z, t, h), (velocity, torch.full_like(t, tangent[0]), torch.full_like(h, tangent[1]))
    )
    residual = flow(z, t, h, NO_CONDITION) + h[:, None, None] * derivative - velocity
    assert residual.abs().max() > 0.1


@pytest.mark.parametrize("nfe", [1, 2, 4, 7])
def test_any_number_of_steps_samples_the_gaussian_exactly(nfe):
    noise = torch.randn(64, 1, HORIZON, ACTION_DIM, generator=generator()).double()
    flow = GaussianFlow(MEAN, SPREAD)
    drawn = objective().sample(flow, noise, nfe)
    torch.testing.assert_close(drawn, MEAN + SPREAD * noise[:, 0], rtol=0, atol=1e-9)


def test_loss_is_smallest_at_the_true_flow():
    """The raw error at the optimum is the variance of e - x given z, which no network removes."""
    generator_x = generator(1)
    actions = MEAN + SPREAD * torch.randn(4096, 1, 1, generator=generator_x).double()
    valid = torch.ones(4096, 1, dtype=torch.bool)

    def raw_mse(flow) -> float:
        batch = Batch(actions, valid, NO_CONDITION, generator())
        return float(objective().loss(flow, batch).figures["raw_mse"])

    best = raw_mse(GaussianFlow(MEAN, SPREAD))
    for mean, spread in ((MEAN + 0.1, SPREAD), (MEAN - 0.1, SPREAD), (MEAN, 0.5), (MEAN, 0.15)):
        assert raw_mse(GaussianFlow(mean, spread)) > best


def gradients(loss: torch.Tensor, head) -> torch.Tensor:
    grads = torch.autograd.grad(loss, list(head.parameters()), allow_unused=True)
    return torch.cat([grad.flatten() for grad in grads if grad is not None] or [torch.empty(0)])


def test_without_spans_the_loss_is_flow_matching():
    head = random_head(torch.float64)
    _, _, _, cond = random_inputs(8, torch.float64)
    actions = torch.randn(8, HORIZON, ACTION_DIM, generator=generator(3)).double()
    valid = torch.ones(8, HORIZON, dtype=torch.bool)
    flow_only = objective(flow_share=1.0, anchored_share=0.0, weight_power=0.0)

    batch = Batch(actions, valid, head.encode_condition(cond), generator())
    loss = flow_only.loss(head, batch)

    stream = generator()
    noise = torch.randn(actions.shape, generator=stream).double()
    t, h = sample_times(flow_only.config, 8, stream)
    t = t.double()
    z = (1 - t)[:, None, None] * actions + t[:, None, None] * noise
    predicted = head(z, t, torch.zeros(8).double(), head.encode_condition(cond))
    expected = (predicted - (noise - actions)).square().sum(dim=(1, 2)).mean()
    assert torch.equal(h, torch.zeros(8))
    torch.testing.assert_close(loss.value, expected)


def test_no_gradient_flows_through_the_derivative():
    """Scaling the derivative's path must not exist: only u carries a gradient."""
    head = random_head(torch.float64)
    _, _, _, cond = random_inputs(8, torch.float64)
    actions = torch.randn(8, HORIZON, ACTION_DIM, generator=generator(3)).double()
    valid = torch.ones(8, HORIZON, dtype=torch.bool)
    spans_only = objective(flow_share=0.0, anchored_share=0.0, weight_power=0.0)

    batch = Batch(actions, valid, head.encode_condition(cond), generator())
    loss = spans_only.loss(head, batch)

    stream = generator()
    noise = torch.randn(actions.shape, generator=stream).double()
    t, h = (times.double() for times in sample_times(spans_only.config, 8, stream))
    target = noise - actions
    z = actions + t[:, None, None] * target
    detached = head.encode_condition(cond).detach()
    direction = boundary(head, z, t, detached)
    derivative = forward_mode_derivative(head, (z, t, h), detached, direction)
    average = head(z, t, h, head.encode_condition(cond))
    by_hand = (average + h[:, None, None] * derivative - target).square().sum(dim=(1, 2)).mean()
    torch.testing.assert_close(gradients(loss.value, head), gradients(by_hand, head))
    assert derivative.abs().max() > 1e-3
    assert not derivative.requires_grad


def test_the_weight_is_the_inverse_of_the_summed_error():
    head = random_head(torch.float64)
    _, _, _, cond = random_inputs(4, torch.float64)
    actions = torch.randn(4, HORIZON, ACTION_DIM, generator=generator(3)).double()
    valid = torch.ones(4, HORIZON, dtype=torch.bool)
    condition = head.encode_condition(cond)
    constant = 0.5

    def value(power: float) -> torch.Tensor:
        weighted = objective(weight_power=power, weight_constant=constant, flow_share=1.0)
        first = Batch(actions[:1], valid[:1], condition.select(slice(0, 1)), generator())
        return weighted.loss(head, first).value

    squared_error = value(0.0)
    torch.testing.assert_close(value(1.0), squared_error / (squared_error + constant))


def test_times_are_shared_out_as_configured():
    config = ImprovedMeanFlowConfig(flow_share=0.5, anchored_share=0.25)
    t, h = sample_times(config, 1000, generator())
    r = t - h
    assert torch.equal(h[:500], torch.zeros(500))
    assert torch.equal(t[750:], torch.ones(250))
    assert torch.equal(h[750:], torch.ones(250))
    assert (h[500:750] > 0).all()
    assert ((r >= 0) & (t <= 1)).all()
    logits = torch.logit(t[:500])  # the larger of two normals: mean -0.4 + 1/sqrt(pi)
    assert float(logits.mean()) == pytest.approx(-0.4 + torch.pi**-0.5, abs=0.15)


def test_anchored_times_cover_the_whole_way_to_the_data_where_asked():
    plain_config = ImprovedMeanFlowConfig(flow_share=0.5, anchored_share=0.25)
    plain = sample_times(plain_config, 8000, generator())
    config = plain_config.model_copy(update={"anchored_noise_share": 0.0})
    t, h = sample_times(config, 8000, generator())
    assert torch.equal(h[6000:], t[6000:])
    mixed = plain_config.model_copy(update={"anchored_noise_share": 0.3})
    at_noise = sample_times(mixed, 8000, generator())[0] == 1
    assert at_noise[-600:].all()
    assert not at_noise[:-600].any()
    deciles = torch.arange(0.1, 1.0, 0.1)
    torch.testing.assert_close(t[6000:].quantile(deciles), deciles, atol=0.04, rtol=0)
    for ours, theirs in zip((t, h), plain, strict=True):  # the others are drawn as before
        assert torch.equal(ours[:6000], theirs[:6000])


class TwoOutputs(JvpNetwork):
    """The exact average velocity, spoilt at h = 0, and an exact velocity, shifted on request."""

    def __init__(self, shift: float = 0.0):
        self.flow = GaussianFlow(MEAN, SPREAD)
        self.shift = shift

    def __call__(self, z, t, h, condition=NO_CONDITION):
        average = self.flow(z, t, h) + 5.0 * (h == 0)[:, None, None]
        velocity = self.flow(z, t, torch.zeros_like(h)) + self.shift
        return torch.cat([average, velocity], dim=-1)


def velocity_head_loss(head, **settings):
    actions = MEAN + SPREAD * torch.randn(256, 4, 2, generator=generator(1)).double()
    settings = {"flow_share": 0.0, "anchored_share": 0.0, "weight_power": 0.0} | settings
    valid = torch.ones(256, 4, dtype=torch.bool)
    batch = Batch(actions, valid, NO_CONDITION, generator())
    return objective(tangent="velocity_head", **settings).loss(head, batch)


def test_at_the_optimum_the_compound_velocity_is_the_velocity_heads():
    """V = u + h du/dt = v exactly, if the tangent is the second output and never u at h = 0."""
    figures = velocity_head_loss(TwoOutputs()).figures
    torch.testing.assert_close(figures["raw_mse"], figures["velocity_mse"], rtol=1e-9, atol=0)


def test_the_velocity_head_is_the_tangent_and_pays_for_its_own_error():
    exact, shifted = (velocity_head_loss(TwoOutputs(shift)).figures for shift in (0.0, 0.5))
    assert float(shifted["velocity_mse"] - exact["velocity_mse"]) > 0.2
    assert not torch.isclose(shifted["raw_mse"], exact["raw_mse"])


def test_the_velocity_loss_is_weighted_by_its_coefficient():
    half, once, twice = (
        velocity_head_loss(TwoOutputs(), velocity_weight=weight) for weight in (0.5, 1.0, 2.0)
    )
    values_a_row = 4 * 2
    own = once.figures["velocity_mse"] * values_a_row
    torch.testing.assert_close(once.value - half.value, 0.5 * own)
    torch.testing.assert_close(twice.value - once.value, own)
