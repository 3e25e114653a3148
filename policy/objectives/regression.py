"""Regression: the mean action, in one pass.

Knows actions; nothing about cameras, robots or datasets. With n(z, t) the network at h = 0:

    a = n(0, 0),   loss = |n(0, 0) - x|^2

Source: `regression_loss` and `regression_sampler` of arXiv 2512.01809, in its authors' code,
simchowitzlabpublic/much-ado-about-noising@0862af9:mip/losses.py and @08ccfdf:mip/samplers.py.
Differs from the source: the error is a mean over action values, without the factor of 100.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict
from torch import Generator, Tensor

from policy.network.head import Condition
from policy.objectives.base import ActionNetwork, Loss
from policy.objectives.deterministic import Deterministic, ask, no_actions
from policy.objectives.masked_error import mean_error


class RegressionConfig(BaseModel):
    """Settings of regression, which has none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["regression"] = "regression"
    """Names the objective in a saved configuration."""


class Regression(Deterministic):
    """The objective; see the module docstring for its equation."""

    def __init__(self, config: RegressionConfig):
        super().__init__(config.kind, num_passes=1)
        self.config = config

    def loss(
        self,
        head: ActionNetwork,
        actions: Float[Tensor, "b horizon a"],
        valid: Bool[Tensor, "b horizon"],
        condition: Condition,
        generator: Generator,
    ) -> Loss:
        """Compute the loss, which takes no random number; see `Objective.loss`."""
        error = mean_error(ask(head, torch.zeros_like(actions), 0.0, condition), actions, valid)
        return Loss(error, {"raw_mse": error.detach()})

    @torch.no_grad()
    def sample(
        self,
        head: ActionNetwork,
        noise: Float[Tensor, "b draws horizon a"],
        condition: Condition,
        num_evaluations: int,
    ) -> Float[Tensor, "b horizon a"]:
        """Predict once; see `Objective.sample`."""
        self.check_evaluations(num_evaluations)
        return ask(head, no_actions(noise), 0.0, condition)
