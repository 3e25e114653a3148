"""MeanFlow, against its own paper's equation and against improved MeanFlow."""

import pytest
import torch
from torch import Tensor

from policy.objectives.base import Batch
from policy.objectives.meanflow import MeanFlow, MeanFlowConfig, sample_times
from tests.policy.network.test_head import ACTION_DIM, HORIZON, random_head, random_inputs
from tests.policy.objectives.analytic import NO_CONDITION, GaussianFlow, JvpNetwork
from tests.policy.objectives.objective_contract import generator

MEAN, SPREAD = 0.7, 0.3


def gradients(loss: Tensor, head) -> Tensor:
    grads = torch.autograd.grad(loss, list(head.parameters()), allow_unused=True)
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_value_and_gradient_are_those_of_the_paper(power):
    """2505.13447, eq. 10 and 11: u(z, r, t) against stopgrad(v - (t-r) du/dt), tangent (v, 0, 1).

    Written in the paper's arguments (z, r, t), so that h = t - r and its tangent are not shared.
    Improved MeanFlow with tangent e - x is u + (t-r) stopgrad(du/dt) against v: same gradient.
    """
    head = random_head(torch.float64)
    _, _, _, cond = random_inputs(8, torch.float64)
    actions = torch.randn(8, HORIZON, ACTION_DIM, generator=generator(3)).double()
    valid = torch.ones(8, HORIZON, dtype=torch.bool)
    objective = MeanFlow(MeanFlowConfig(flow_share=0.25, anchored_share=0.25, weight_power=power))

    batch = Batch(actions, valid, head.encode_condition(cond), generator())
    loss = objective.loss(head, batch)

    stream = generator()
    noise = torch.randn(actions.shape, generator=stream).double()
    t, h = (times.double() for times in sample_times(objective.config, 8, stream))
    r, velocity = t - h, noise - actions
    z = (1 - t)[:, None, None] * actions + t[:, None, None] * noise
    detached = head.encode_condition(cond).detach()
    with torch.no_grad():
        _, derivative = torch.func.jvp(
            lambda z, r, t: head(z, t, t - r, detached),
            (z, r, t),
            (velocity, torch.zeros_like(r), torch.ones_like(t)),
        )
    target = velocity - (t - r)[:, None, None] * derivative

    def weighted(error_of) -> Tensor:
        average = head(z, t, t - r, head.encode_condition(cond))
        error = error_of(average).square().sum(dim=(1, 2))
        return (error / (error.detach() + 0.01) ** power).mean()

    meanflow = weighted(lambda average: average - target.detach())
    improved = weighted(lambda average: average + (t - r)[:, None, None] * derivative - velocity)

    torch.testing.assert_close(loss.value, meanflow)
    ours = gradients(loss.value, head)
    torch.testing.assert_close(ours, gradients(meanflow, head))
    torch.testing.assert_close(ours, gradients(improved, head))
    assert derivative[2:].abs().max() > 1e-3


def test_defaults_are_the_papers():
    config = MeanFlowConfig()
    assert (config.flow_share, config.anchored_share, config.weight_power) == (0.75, 0.0, 1.0)
    assert (config.time_logit_mean, config.time_logit_std) == (-0.4, 1.0)


def test_the_exact_average_velocity_is_stationary():
    """With tangent e - x the error is not zero at the optimum, but its mean given z is."""
    actions = MEAN + SPREAD * torch.randn(400_000, 1, 1, generator=generator(1)).double()
    valid = torch.ones(len(actions), 1, dtype=torch.bool)
    objective = MeanFlow(MeanFlowConfig(flow_share=0.0, weight_power=0.0))
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    flow = GaussianFlow(MEAN, SPREAD)

    loss = objective.loss(
        JvpNetwork(lambda z, t, h: flow(z, t, h) + shift),
        Batch(actions, valid, NO_CONDITION, generator()),
    )
    loss.value.backward()

    # The mean of 400,000 errors of spread about 1 has a spread of 0.002, and the slope is twice it.
    assert abs(float(shift.grad)) < 0.02
