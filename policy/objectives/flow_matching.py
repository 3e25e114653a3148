"""Flow matching: the velocity from noise to data, integrated with Euler steps.

Knows actions and time; nothing about cameras, robots or datasets:

    loss = |v(z, t) - (e - x)|^2,   t uniform in [0, 1];   the network is asked at h = 0

Source: rectified flow, arXiv 2209.03003, and flow matching, arXiv 2210.02747; uniform times as in
simchowitzlabpublic/much-ado-about-noising@0862af9:mip/losses.py, whose time runs the other way.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict
from torch import Generator, Tensor

from policy.network.head import Condition
from policy.objectives.base import ActionNetwork, Loss
from policy.objectives.flow_sampling import Start, check_jumps, jump_to_data, starting_point
from policy.objectives.masked_error import mean_error


class FlowMatchingConfig(BaseModel):
    """Settings of flow matching."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["flow_matching"] = "flow_matching"
    """Names the objective in a saved configuration."""
    start: Start = "gaussian"
    """Where sampling starts; `zero` always gives the same, most central actions."""


class FlowMatching:
    """The objective; see the module docstring for its equation."""

    num_outputs = 1
    default_evaluations = 10  # Euler steps; pi0, arXiv 2410.24164, and as many as DDIM here

    def __init__(self, config: FlowMatchingConfig):
        self.config = config

    def check_evaluations(self, num_evaluations: int) -> None:
        """Refuse less than one pass; see `Objective.check_evaluations`."""
        check_jumps(num_evaluations)

    def num_noise_draws(self, num_evaluations: int) -> int:
        """Return 1, the start; see `Objective.num_noise_draws`."""
        return 1

    def loss(
        self,
        head: ActionNetwork,
        actions: Float[Tensor, "b horizon a"],
        valid: Bool[Tensor, "b horizon"],
        condition: Condition,
        generator: Generator,
    ) -> Loss:
        """Compute the loss; see `Objective.loss`."""
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        t = torch.rand(len(actions), generator=generator).to(actions)
        target = noise - actions
        z = actions + t[:, None, None] * target
        error = mean_error(head(z, t, torch.zeros_like(t), condition), target, valid)
        return Loss(error, {"raw_mse": error.detach()})

    @torch.no_grad()
    def sample(
        self,
        head: ActionNetwork,
        noise: Float[Tensor, "b draws horizon a"],
        condition: Condition,
        num_evaluations: int,
    ) -> Float[Tensor, "b horizon a"]:
        """Integrate from noise to data; see `Objective.sample`."""
        self.check_evaluations(num_evaluations)
        return jump_to_data(
            lambda z, t, h: head(z, t, torch.zeros_like(h), condition),
            starting_point(noise, self.config.start),
            num_evaluations,
        )
