"""Flow matching, against closed forms of Gaussian data."""

import math

import pytest
import torch

from policy.objectives.base import Batch
from policy.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from tests.policy.objectives.analytic import NO_CONDITION, GaussianFlow
from tests.policy.objectives.objective_contract import generator

MEAN, SPREAD = 0.7, 0.3


def sampling_error(nfe: int) -> float:
    noise = torch.randn(64, 1, 8, 3, generator=generator()).double()
    flow = GaussianFlow(MEAN, SPREAD)
    drawn = FlowMatching(FlowMatchingConfig()).sample(flow, noise, nfe)
    return float((drawn - (MEAN + SPREAD * noise[:, 0])).square().mean().sqrt())


def test_euler_steps_converge_to_the_gaussian_at_first_order():
    """One step errs; twice the steps, half the error. At h > 0 a network would not err."""
    assert sampling_error(1) > 0.2
    for steps in (100, 200):
        assert sampling_error(steps) / sampling_error(2 * steps) == pytest.approx(2, abs=0.1)


def test_error_at_the_true_velocity_is_what_no_network_removes():
    """Var(e - x | z_t) = spread^2 / sigma(t)^2, whose mean over uniform t is spread * pi / 2."""
    actions = MEAN + SPREAD * torch.randn(200_000, 1, 1, generator=generator(1)).double()
    valid = torch.ones(len(actions), 1, dtype=torch.bool)
    batch = Batch(actions, valid, NO_CONDITION, generator())
    loss = FlowMatching(FlowMatchingConfig()).loss(GaussianFlow(MEAN, SPREAD), batch)
    assert float(loss.value) == pytest.approx(SPREAD * math.pi / 2, rel=0.01)
