"""Regression and MIP, against their formulas on networks simple enough to do by hand."""

import pytest
import torch

from policy.errors import AgentMismatchError
from policy.objectives.base import Batch
from policy.objectives.deterministic import Mip, MipConfig, Regression, RegressionConfig
from tests.policy.objectives.analytic import NO_CONDITION, JvpNetwork
from tests.policy.objectives.objective_contract import generator, random_actions

IGNORED_NOISE = torch.ones(2, 1, 8, 3)


def recorded(calls: list):
    """A network that adds 0.25 and remembers its inputs."""

    @JvpNetwork
    def network(z, t, h):
        calls.append((z, t, h))
        return z + 0.25

    return network


def test_regression_sees_zeros_only():
    calls = []
    objective = Regression(RegressionConfig())
    drawn = objective.sample(recorded(calls), IGNORED_NOISE, 1)
    actions, valid = random_actions(2)
    batch = Batch(actions, valid, NO_CONDITION, generator())
    loss = objective.loss(recorded(calls), batch)
    assert torch.equal(drawn, torch.full((2, 8, 3), 0.25))
    assert len(calls) == 2
    assert not any(tensor.any() for call in calls for tensor in call)
    torch.testing.assert_close(loss.value, ((actions - 0.25) ** 2).mean())


def test_mip_corrects_its_own_first_answer():
    calls = []
    drawn = Mip(MipConfig(second_time=0.8)).sample(recorded(calls), IGNORED_NOISE, 2)
    (first_z, first_t, first_h), (second_z, second_t, second_h) = calls
    assert torch.equal(first_z, torch.zeros(2, 8, 3))
    assert torch.equal(second_z, torch.full((2, 8, 3), 0.25))
    assert torch.equal(first_t, torch.zeros(2))
    assert torch.equal(second_t, torch.full((2,), 0.8))
    assert not first_h.any()
    assert not second_h.any()
    assert torch.equal(drawn, torch.full((2, 8, 3), 0.5))


def test_mip_loss_equals_its_formula():
    """For n(z, t) = z the first error is x, and the second the noise that was added."""
    actions, valid = random_actions(16)
    objective = Mip(MipConfig(second_time=0.8))
    batch = Batch(actions, valid, NO_CONDITION, generator())
    loss = objective.loss(JvpNetwork(lambda z, t, h: z), batch)
    noise = torch.randn(actions.shape, generator=generator())
    expected = (actions**2).mean() / 0.8**2 + ((0.2 * noise) ** 2).mean() / 0.2**2
    torch.testing.assert_close(loss.value, expected)
    torch.testing.assert_close(loss.figures["raw_mse"], (actions**2).mean())
    torch.testing.assert_close(loss.figures["second_mse"], ((0.2 * noise) ** 2).mean())


@pytest.mark.parametrize(
    ("objective", "number"), [(Regression(RegressionConfig()), 1), (Mip(MipConfig()), 2)]
)
def test_the_refusal_says_which_number_works(objective, number):
    with pytest.raises(AgentMismatchError, match=f"always takes {number}"):
        objective.check_evaluations(4)
