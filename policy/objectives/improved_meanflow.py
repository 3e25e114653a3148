"""Improved MeanFlow: an average velocity, derived along a velocity that the network predicts.

Knows actions and time; nothing about cameras, robots or datasets. The tangent v of du/dt is

    boundary        u(z, t, 0): no extra parameters
    velocity_head   a second output of the network at h = 0, trained on e - x beside the first

Source: improved MeanFlow, arXiv 2512.02012; the velocity head as in Lyy-iiis/imeanflow@a1cc3a9:
imf.py: its loss is taken where the gradient pass is, at the drawn h, under the same weight.
Differs from the source: its velocity head branches off before the last blocks, here both outputs
read the same last layer; see `average_velocity.py` and `time_sampling.py` for the rest.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Generator, Tensor

from policy.network.head import Condition
from policy.objectives.average_velocity import (
    AverageVelocityConfig,
    AverageVelocityObjective,
    NoisyActions,
)
from policy.objectives.base import ActionNetwork, DifferentiableNetwork, Loss
from policy.objectives.masked_error import num_values, summed_error


class ImprovedMeanFlowConfig(AverageVelocityConfig):
    """Settings of improved MeanFlow."""

    kind: Literal["improved_meanflow"] = "improved_meanflow"
    """Names the objective in a saved configuration."""
    tangent: Literal["boundary", "velocity_head"] = "boundary"
    """Where the velocity along which to derive comes from: the network at h = 0, or its own head,
    which doubles the last layer's width."""
    velocity_weight: float = Field(default=1.0, gt=0)
    """Weight of the velocity head's own loss beside the main one; without that head unused."""


class ImprovedMeanFlow(AverageVelocityObjective):
    """The objective; see the module docstring."""

    def __init__(self, config: ImprovedMeanFlowConfig):
        super().__init__(config)
        self.config = config
        self.num_outputs = 2 if config.tangent == "velocity_head" else 1

    def loss(
        self,
        head: DifferentiableNetwork,
        actions: Float[Tensor, "b horizon a"],
        valid: Bool[Tensor, "b horizon"],
        condition: Condition,
        generator: Generator,
    ) -> Loss:
        """Compute the loss; see `Objective.loss`."""
        drawn = self.draw(actions, generator)
        width = actions.shape[-1]
        predicted = head(drawn.z, drawn.t, drawn.h, condition)
        loss = self.compound_loss(
            predicted[..., :width],
            drawn,
            valid,
            head=head,
            condition=condition,
            tangent=_velocity(head, drawn, condition),
        )
        if self.config.tangent == "boundary":
            return loss
        error = summed_error(predicted[..., width:], drawn.target, valid)
        velocity_mse = error.detach().sum() / num_values(drawn.target, valid)
        return Loss(
            loss.value + self.config.velocity_weight * self.weighted(error).mean(),
            loss.figures | {"velocity_mse": velocity_mse},
        )


@torch.no_grad()
def _velocity(head: ActionNetwork, drawn: NoisyActions, condition: Condition) -> Tensor:
    """Ask the network for the velocity at the rows that need du/dt, in full precision."""
    z, t = drawn.z[drawn.spans], drawn.t[drawn.spans]
    with torch.autocast(z.device.type, enabled=False):
        answer = head(z, t, torch.zeros_like(t), condition.select(drawn.spans).detach())
    # The last chunk is the velocity head's where there is one, and u itself elsewhere.
    return answer[..., -z.shape[-1] :]
