"""MeanFlow: an average velocity, derived along the velocity of the drawn pair.

Knows actions and time; nothing about cameras, robots or datasets:

    loss = |u(z, t, h) - stopgrad( (e - x) - h du/dt )|^2, weighted;  du/dt along v = e - x

Source: MeanFlow, arXiv 2505.13447: three quarters of the items at r = t, p = 1.
Differs from the source: see `average_velocity.py`; the share of one-step queries is 0 here, as in
the source, and can be raised.
"""

from typing import Literal

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Generator, Tensor

from policy.network.head import Condition
from policy.objectives.average_velocity import AverageVelocityConfig, AverageVelocityObjective
from policy.objectives.base import DifferentiableNetwork, Loss


class MeanFlowConfig(AverageVelocityConfig):
    """Settings of MeanFlow."""

    kind: Literal["meanflow"] = "meanflow"
    """Names the objective in a saved configuration."""
    flow_share: float = Field(default=0.75, ge=0, le=1)
    """Share of a batch trained at r = t, which is plain flow matching and costs no JVP."""
    anchored_share: float = Field(default=0.0, ge=0, le=1)
    """Share of a batch drawn at r = 0, the end of a one-step policy; never r = t items."""


class MeanFlow(AverageVelocityObjective):
    """The objective; see the module docstring for its equation."""

    def __init__(self, config: MeanFlowConfig):
        super().__init__(config)
        self.config = config

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
        average = head(drawn.z, drawn.t, drawn.h, condition)
        return self.compound_loss(
            average,
            drawn,
            valid,
            head=head,
            condition=condition,
            tangent=drawn.target[drawn.spans],
        )
