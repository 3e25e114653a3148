"""What every objective must do, on a small real head; subclasses say how to build one."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from policy.errors import AgentMismatchError
from policy.network.head import ActionHead, Condition, HeadConfig
from policy.objectives.base import Batch, Objective, bind
from policy.objectives.registry import ObjectiveConfig, build_objective
from tests.policy.objectives.analytic import NO_CONDITION, JvpNetwork

ACTION_DIM, COND_DIM, NUM_COND, HORIZON = 3, 20, 2, 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_head(objective: Objective, dtype: torch.dtype = torch.float32) -> ActionHead:
    """A head of two layers whose output is not zero, as it would be at the start."""
    torch.manual_seed(0)
    head = ActionHead(
        HeadConfig(n_emb=64, n_layer=2, pred_horizon=HORIZON),
        cond_dim=COND_DIM,
        num_cond_tokens=NUM_COND,
        action_dim=ACTION_DIM,
        num_outputs=objective.num_outputs,
    )
    with torch.no_grad():
        head.predict.weight.normal_(std=0.1)
        head.residuals.query.normal_(std=0.3)
    return head.to(dtype)


def random_actions(batch: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Chunks in [-1, 1] and a mask that lets every step count."""
    actions = torch.rand(batch, HORIZON, ACTION_DIM, generator=generator(3)) * 2 - 1
    return actions.to(dtype), torch.ones(batch, HORIZON, dtype=torch.bool)


def random_condition(head: ActionHead, batch: int) -> Condition:
    cond = torch.randn(batch, NUM_COND, COND_DIM, generator=generator(4))
    return head.encode_condition(cond.to(head.predict.weight))


def random_noise(objective: Objective, batch: int, evaluations: int | None = None) -> Tensor:
    draws = objective.num_noise_draws(evaluations or objective.default_evaluations)
    return torch.randn(batch, draws, HORIZON, ACTION_DIM, generator=generator(5)).double()


class ObjectiveContract:
    """Subclasses name a configuration, and what a head must know to be refused."""

    config: ClassVar[ObjectiveConfig]
    refused_evaluations: ClassVar[tuple[int, ...]] = (0, -1)
    unreached: ClassVar[frozenset[str]] = frozenset()
    """Parameters that get no gradient, because the network only ever sees zeros there."""

    @pytest.fixture
    def objective(self) -> Objective:
        return build_objective(self.config)

    def test_gradients_reach_every_parameter(self, objective):
        head = small_head(objective)
        actions, valid = random_actions(16)
        batch = Batch(actions, valid, random_condition(head, 16), generator())
        loss = objective.loss(head, batch)
        loss.value.backward()
        unreached = {name for name, p in head.named_parameters() if not p.grad.any()}
        assert torch.isfinite(loss.value)
        assert torch.isfinite(loss.figures["raw_mse"])
        assert all(not figure.requires_grad for figure in loss.figures.values())
        assert unreached == self.unreached

    def test_the_same_generator_gives_the_same_loss(self, objective):
        head = small_head(objective)
        actions, valid = random_actions(16)
        condition = random_condition(head, 16)
        first, second = (
            objective.loss(head, Batch(actions, valid, condition, generator(7))).value
            for _ in range(2)
        )
        assert torch.equal(first, second)

    def test_padded_steps_have_no_influence(self, objective):
        actions, valid = random_actions(16)
        valid[:, 5:] = False
        changed = actions.clone()
        changed[:, 5:] = 100.0

        @JvpNetwork
        def every_step_alone(z, t, h):
            # Without attention, only the mask can keep padding out of the loss.
            answer = z * t[:, None, None] + h[:, None, None]
            return torch.cat([answer] * objective.num_outputs, dim=-1)

        kept, other = (
            objective.loss(every_step_alone, Batch(chunk, valid, NO_CONDITION, generator()))
            for chunk in (actions, changed)
        )
        assert torch.equal(kept.value, other.value)
        assert kept.figures.keys() == other.figures.keys()
        assert all(torch.equal(kept.figures[name], other.figures[name]) for name in kept.figures)

    def test_a_row_is_sampled_equally_alone_and_among_others(self, objective):
        """Float64: a batch of another size may round its matrix products differently."""
        head = small_head(objective, torch.float64)
        condition, noise = random_condition(head, 4), random_noise(objective, 4)

        def sample(rows: slice) -> Tensor:
            network = bind(head, condition.select(rows))
            return objective.sample(network, noise[rows], objective.default_evaluations)

        together = sample(slice(None))
        alone = torch.cat([sample(slice(row, row + 1)) for row in range(4)])
        assert torch.equal(sample(slice(None)), together)
        assert not together.requires_grad
        torch.testing.assert_close(alone, together, rtol=0, atol=1e-10)

    def test_other_numbers_of_evaluations_are_refused(self, objective):
        head = small_head(objective, torch.float64)
        condition, noise = random_condition(head, 1), random_noise(objective, 1)
        objective.check_evaluations(objective.default_evaluations)
        for number in self.refused_evaluations:
            with pytest.raises(AgentMismatchError, match="nfe"):
                objective.check_evaluations(number)
            with pytest.raises(AgentMismatchError, match="nfe"):
                objective.sample(bind(head, condition), noise, number)

    def test_the_head_is_evaluated_as_often_as_announced(self, objective):
        head = small_head(objective, torch.float64)
        network = bind(head, random_condition(head, 2))
        evaluations = []

        def counting(*inputs):
            evaluations.append(inputs)
            return network(*inputs)

        objective.sample(counting, random_noise(objective, 2), objective.default_evaluations)
        assert len(evaluations) == objective.default_evaluations
