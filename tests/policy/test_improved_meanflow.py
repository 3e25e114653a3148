"""The objective, against the closed form of Gaussian data and against MeanFlow's gradient."""

import pytest
import torch

from policy.objectives.improved_meanflow import ImprovedMeanFlow, ImprovedMeanFlowConfig
from tests.policy.analytic import NO_CONDITION, GaussianFlow
from tests.policy.test_head import ACTION_DIM, HORIZON, random_head, random_inputs

MEAN, SPREAD = 0.7, 0.3


def objective(**settings) -> ImprovedMeanFlow:
    return ImprovedMeanFlow(ImprovedMeanFlowConfig(**settings))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double_inputs(batch: int):
    z, t, h, _ = random_inputs(batch, torch.float64)
    return z, 0.1 + 0.9 * t, h


def test_derivative_satisfies_the_identity_on_gaussian_data():
    """u = v - h du/dt, exactly, only with the tangent (v, 1, 1)."""
    flow = GaussianFlow(MEAN, SPREAD)
    z, t, h = double_inputs(16)
    h = h.clamp_min(0.05).minimum(t)

    derivative = objective().total_derivative(flow, z, t, h, NO_CONDITION)

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
        lambda z, t, h: flow(z, t, h, NO_CONDITION),
        (z, t, h),
        (velocity, torch.full_like(t, tangent[0]), torch.full_like(h, tangent[1])),
    )
    residual = flow(z, t, h, NO_CONDITION) + h[:, None, None] * derivative - velocity
    assert residual.abs().max() > 0.1


@pytest.mark.parametrize("num_evaluations", [1, 2, 4, 7])
def test_any_number_of_steps_samples_the_gaussian_exactly(num_evaluations):
    noise = torch.randn(64, HORIZON, ACTION_DIM, generator=generator()).double()
    flow = GaussianFlow(MEAN, SPREAD)
    drawn = objective().sample(flow, noise, NO_CONDITION, num_evaluations)
    torch.testing.assert_close(drawn, MEAN + SPREAD * noise, rtol=0, atol=1e-9)


def test_loss_is_smallest_at_the_true_flow():
    """The raw error at the optimum is the variance of e - x given z, which no network removes."""
    generator_x = generator(1)
    actions = MEAN + SPREAD * torch.randn(4096, 1, 1, generator=generator_x).double()
    valid = torch.ones(4096, 1, dtype=torch.bool)

    def raw_mse(flow) -> float:
        return float(
            objective().loss(flow, actions, valid, NO_CONDITION, generator()).figures["raw_mse"]
        )

    best = raw_mse(GaussianFlow(MEAN, SPREAD))
    for mean, spread in ((MEAN + 0.1, SPREAD), (MEAN - 0.1, SPREAD), (MEAN, 0.5), (MEAN, 0.15)):
        assert raw_mse(GaussianFlow(mean, spread)) > best


def gradients(loss: torch.Tensor, head) -> torch.Tensor:
    grads = torch.autograd.grad(loss, list(head.parameters()), allow_unused=True)
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


def test_gradient_equals_meanflow_when_the_tangent_is_the_sample_velocity():
    """With tangent e - x, the loss must have MeanFlow's gradient: 2 (u - stopgrad(target)) du."""
    head = random_head(torch.float64)
    z, t, h, cond = random_inputs(6, torch.float64)
    actions = torch.randn(z.shape, generator=generator(3)).double()
    noise = torch.randn(z.shape, generator=generator(4)).double()
    target = noise - actions
    z = actions + t[:, None, None] * target
    ones = torch.ones_like(t)
    detached = head.encode_condition(cond).detach()
    with torch.no_grad():
        _, derivative = torch.func.jvp(
            lambda z, t, h: head(z, t, h, detached), (z, t, h), (target, ones, ones)
        )

    def average():
        return head(z, t, h, head.encode_condition(cond))

    span = h[:, None, None]
    improved = (average() + span * derivative - target).square().sum()
    meanflow = (average() - (target - span * derivative).detach()).square().sum()

    torch.testing.assert_close(gradients(improved, head), gradients(meanflow, head))


def test_without_spans_the_loss_is_flow_matching():
    head = random_head(torch.float64)
    _, _, _, cond = random_inputs(8, torch.float64)
    actions = torch.randn(8, HORIZON, ACTION_DIM, generator=generator(3)).double()
    valid = torch.ones(8, HORIZON, dtype=torch.bool)
    flow_only = objective(flow_share=1.0, anchored_share=0.0, weight_power=0.0)

    loss = flow_only.loss(head, actions, valid, head.encode_condition(cond), generator())

    stream = generator()
    noise = torch.randn(actions.shape, generator=stream).double()
    t, h = flow_only.sample_times(8, stream)
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

    loss = spans_only.loss(head, actions, valid, head.encode_condition(cond), generator())

    stream = generator()
    noise = torch.randn(actions.shape, generator=stream).double()
    t, h = (times.double() for times in spans_only.sample_times(8, stream))
    target = noise - actions
    z = actions + t[:, None, None] * target
    derivative = spans_only.total_derivative(head, z, t, h, head.encode_condition(cond).detach())
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
        return weighted.loss(
            head, actions[:1], valid[:1], condition.select(slice(0, 1)), generator()
        ).value

    squared_error = value(0.0)
    torch.testing.assert_close(value(1.0), squared_error / (squared_error + constant))


def test_padded_steps_have_no_influence():
    actions = torch.randn(4, HORIZON, ACTION_DIM, generator=generator(3)).double()
    valid = torch.ones(4, HORIZON, dtype=torch.bool)
    valid[:, 5:] = False

    def loss_without_attention(actions):
        # A head that treats every step alone: only the mask can keep padding out of the loss.
        def per_step(z, t, h, condition):
            return z * t[:, None, None] + h[:, None, None]

        return objective().loss(per_step, actions, valid, NO_CONDITION, generator())

    changed = actions.clone()
    changed[:, 5:] = 100.0
    kept, other = loss_without_attention(actions), loss_without_attention(changed)
    torch.testing.assert_close(kept.value, other.value)
    torch.testing.assert_close(kept.figures["raw_mse"], other.figures["raw_mse"])


def test_times_are_shared_out_as_configured():
    t, h = objective(flow_share=0.5, anchored_share=0.25).sample_times(1000, generator())
    r = t - h
    assert torch.equal(h[:500], torch.zeros(500))
    assert torch.equal(t[750:], torch.ones(250))
    assert torch.equal(h[750:], torch.ones(250))
    assert (h[500:750] > 0).all()
    assert ((r >= 0) & (t <= 1)).all()
    logits = torch.logit(t[:500])  # the larger of two normals: mean -0.4 + 1/sqrt(pi)
    assert float(logits.mean()) == pytest.approx(-0.4 + torch.pi**-0.5, abs=0.15)


def test_the_same_generator_gives_the_same_loss():
    head = random_head()
    _, _, _, cond = random_inputs(8)
    actions = torch.randn(8, HORIZON, ACTION_DIM, generator=generator(3))
    valid = torch.ones(8, HORIZON, dtype=torch.bool)
    values = [
        objective().loss(head, actions, valid, head.encode_condition(cond), generator(7)).value
        for _ in range(2)
    ]
    assert torch.equal(values[0], values[1])
