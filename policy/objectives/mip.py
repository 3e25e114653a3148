"""The minimal iterative policy: actions without noise in two passes, the second corrects the first.

Knows actions; nothing about cameras, robots or datasets. With n(z, t) the network at h = 0:

    a0 = n(0, 0),  a = n(a0, s),  s = 0.9
    loss = |n(0, 0) - x|^2 / s^2  +  |n(x + (1-s) e, s) - x|^2 / (1-s)^2,   e ~ N(0, I)

Source: arXiv 2512.01809, in its authors' code, simchowitzlabpublic/much-ado-about-noising@0862af9:
mip/losses.py (`mip_loss`) and @08ccfdf:mip/samplers.py (`mip_sampler`). By a note there, the paper
scales the second pass's input by s; the code, followed here, does not.
Differs from the source: the error is a mean over action values, without the factor of 100.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Generator, Tensor

from policy.network.head import Condition
from policy.objectives.base import ActionNetwork, Loss
from policy.objectives.deterministic import Deterministic, ask, no_actions
from policy.objectives.masked_error import mean_error


class MipConfig(BaseModel):
    """Settings of the minimal iterative policy."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["mip"] = "mip"
    """Names the objective in a saved configuration."""
    second_time: float = Field(default=0.9, gt=0, lt=1)
    """s, the time of the second pass, which is trained to remove noise of spread 1 - s from
    normalised actions; nearer to 1 it corrects less, and its errors weigh more."""


class Mip(Deterministic):
    """The objective; see the module docstring for its equations."""

    def __init__(self, config: MipConfig):
        super().__init__(config.kind, num_passes=2)
        self.config = config

    def loss(
        self,
        head: ActionNetwork,
        actions: Float[Tensor, "b horizon a"],
        valid: Bool[Tensor, "b horizon"],
        condition: Condition,
        generator: Generator,
    ) -> Loss:
        """Compute the loss; see `Objective.loss`."""
        second_time = self.config.second_time
        spread = 1 - second_time
        noisy = actions + spread * torch.randn(actions.shape, generator=generator).to(actions)
        first = mean_error(ask(head, torch.zeros_like(actions), 0.0, condition), actions, valid)
        second = mean_error(ask(head, noisy, second_time, condition), actions, valid)
        return Loss(
            first / second_time**2 + second / spread**2,
            {"raw_mse": first.detach(), "second_mse": second.detach()},
        )

    @torch.no_grad()
    def sample(
        self,
        head: ActionNetwork,
        noise: Float[Tensor, "b draws horizon a"],
        condition: Condition,
        num_evaluations: int,
    ) -> Float[Tensor, "b horizon a"]:
        """Predict twice; see `Objective.sample`."""
        self.check_evaluations(num_evaluations)
        first = ask(head, no_actions(noise), 0.0, condition)
        return ask(head, first, self.config.second_time, condition)
