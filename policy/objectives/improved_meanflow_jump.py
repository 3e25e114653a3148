"""Improved MeanFlow by jumps: an average velocity that adds up, instead of one that is derived.

Knows actions and time; nothing about cameras, robots or datasets. The velocity is a second output
of the network, trained on e - x; u, the first, is told by `jump_target` what follows from it:

    loss = d(u, jump) + velocity_weight * |v - (e - x)|^2,    d the adaptively weighted error

Whom the jump asks are the averaged weights: the place where two modes part moves with every step
of the velocity in training, and a u that learnt from that velocity would draw actions between the
modes. Even the place of the averaged weights moves. Weighted with the power 0.5, which is the
distance instead of its square, u takes the side it is told more often instead of the middle. The
velocity's own target is noisy, so that only a squared error makes it the mean that a velocity is.

Source: the velocity head of improved MeanFlow, arXiv 2512.02012; averaged weights as a teacher:
Mean Teacher, arXiv 1703.01780; a distance to what a teacher says: the pseudo-Huber loss of
arXiv 2310.14189.
Differs from the source: no du/dt; every item ends at the data, r = 0, three in ten of them at the
query of a one-step policy; see `jump.py` and `time_sampling.py`.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Generator, Tensor

from policy.head import Condition
from policy.objectives.average_velocity import (
    AverageVelocityConfig,
    AverageVelocityObjective,
    NoisyActions,
    average_velocity,
    figures_of,
)
from policy.objectives.base import DifferentiableNetwork, Loss, Teacher
from policy.objectives.jump import jump_target
from policy.objectives.masked_error import num_values, summed_error


class ImprovedMeanFlowJumpConfig(AverageVelocityConfig):
    """Settings of improved MeanFlow by jumps; the defaults are for decisions of one pass."""

    kind: Literal["improved_meanflow_jump"] = "improved_meanflow_jump"
    """Names the objective in a saved configuration."""
    flow_share: float = Field(default=0.0, ge=0, le=1)
    """Share of a batch trained at r = t; the velocity does not need them, for it is asked at the
    spans it is trained at."""
    anchored_share: float = Field(default=1.0, ge=0, le=1)
    """Share of a batch drawn at r = 0, the end of a one-step policy; fewer if decisions are to take
    several passes, whose spans are else not trained; never r = t items."""
    anchored_noise_share: float = Field(default=0.3, ge=0, le=1)
    """Share of those at t = 1, where a one-step policy asks; the others are uniform in [0, 1],
    where its jumps land."""
    weight_power: float = Field(default=0.5, ge=0)
    """p of the adaptive weight of u's error; 0 is the squared error, 0.5 the distance."""
    weight_constant: float = Field(default=0.001, gt=0)
    """c of that weight, in summed squared normalised actions."""
    velocity_weight: float = Field(default=1.0, gt=0)
    """Weight of the velocity's loss beside u's; through it alone the data is learnt."""

    @model_validator(mode="after")
    def _jumps_land_where_something_is_trained(self) -> "ImprovedMeanFlowJumpConfig":
        if self.anchored_share == self.anchored_noise_share == 1:
            raise ValueError(
                "anchored_share=1, anchored_noise_share=1: jumps land at times below 1, where "
                "nothing would be trained; lower one of them"
            )
        return self


class ImprovedMeanFlowJump(AverageVelocityObjective):
    """The objective; see the module docstring for its equation."""

    num_outputs = 2

    def __init__(self, config: ImprovedMeanFlowJumpConfig):
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
        """Compute the loss of a network that teaches itself; see `Objective.loss`."""
        itself = Teacher(head, condition)
        return self.taught_loss(head, actions, valid, condition, generator, teacher=itself)

    def taught_loss(
        self,
        head: DifferentiableNetwork,
        actions: Float[Tensor, "b horizon a"],
        valid: Bool[Tensor, "b horizon"],
        condition: Condition,
        generator: Generator,
        *,
        teacher: Teacher,
    ) -> Loss:
        """Compute the loss; see `TaughtObjective.taught_loss`.

        `raw_mse` is the distance from what the teacher says, `velocity_mse` that from the data.
        """
        drawn = self.draw(actions, generator)
        predicted = head(drawn.z, drawn.t, drawn.h, condition)
        width = actions.shape[-1]
        average, velocity = predicted[..., :width], predicted[..., width:]
        error = summed_error(average, _target(teacher, drawn, generator), valid)
        velocity_error = summed_error(velocity, drawn.target, valid)
        velocity_mse = velocity_error.detach().sum() / num_values(drawn.target, valid)
        return Loss(
            self.weighted(error).mean() + self.config.velocity_weight * velocity_error.mean(),
            figures_of(error, average, valid) | {"velocity_mse": velocity_mse},
        )


@torch.no_grad()
def _target(
    teacher: Teacher, drawn: NoisyActions, generator: Generator
) -> Float[Tensor, "b horizon a"]:
    """Return what the teacher says u should be at the drawn points."""

    def velocity(z: Tensor, t: Tensor, h: Tensor) -> Tensor:
        return teacher.head(z, t, h, teacher.condition)[..., z.shape[-1] :]

    average = average_velocity(teacher.head, teacher.condition)
    return jump_target(velocity, average, (drawn.z, drawn.t, drawn.h), generator)
