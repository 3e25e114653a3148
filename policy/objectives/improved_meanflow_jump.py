"""Improved MeanFlow by jumps: an average velocity that adds up, instead of one that is derived.

Knows actions and time; nothing about cameras, robots or datasets. Every item ends at the data,
r = 0, as a decision of one pass does. The velocity is a second output of the network, trained on
e - x; u, the first, is told by `jump_target` what follows from it:

    loss = d(u - jump) + velocity_weight * |v - (e - x)|^2,    d the adaptively weighted error

Whom the jump asks are the averaged weights: the place where two modes part moves with every step
of the velocity in training, and a u that learnt from that velocity would draw actions between the
modes. Even the place of the averaged weights moves. Weighted with the power 0.5, which is the
distance instead of its square, u takes the side it is told more often instead of the middle. The
velocity's own target is noisy, so that only a squared error makes it the mean that a velocity is.

Source: the velocity head of improved MeanFlow, arXiv 2512.02012; averaged weights as a teacher:
Mean Teacher, arXiv 1703.01780; a distance to what a teacher says: the pseudo-Huber loss of
arXiv 2310.14189.
Differs from the source: no du/dt, and no span that a decision of one pass does not need; errors
are means over a chunk, so that the two weigh alike in chunks of any size. See `jump.py`.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Generator, Tensor

from policy.network.head import Condition
from policy.objectives.average_velocity import average_velocity, relative_difference
from policy.objectives.base import (
    ActionNetwork,
    Loss,
    Teacher,
    check_fixed_evaluations,
)
from policy.objectives.flow_sampling import Start, jump_to_data, starting_point
from policy.objectives.jump import draw_shares_left, jump_target
from policy.objectives.masked_error import (
    adaptively_weighted,
    masked_rms,
    num_values,
    summed_error,
)


class ImprovedMeanFlowJumpConfig(BaseModel):
    """Settings of improved MeanFlow by jumps."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["improved_meanflow_jump"] = "improved_meanflow_jump"
    """Names the objective in a saved configuration."""
    noise_share: float = Field(default=0.3, ge=0, lt=1)
    """Share of a batch at t = 1, where a decision asks; the others, at least one, are uniform in
    [0, 1], where jumps land."""
    weight_power: float = Field(default=0.5, ge=0, le=2)
    """p of the adaptive weight of u's error; 0 is the squared error, 0.5 the distance."""
    weight_constant: float = Field(default=0.0005, gt=0)
    """c of that weight, in mean squared normalised actions."""
    velocity_weight: float = Field(default=1.4, gt=0)
    """Weight of the velocity's loss beside u's; through it alone the data is learnt."""
    start: Start = "gaussian"
    """Where sampling starts; `zero` always gives the same, most central actions."""


class ImprovedMeanFlowJump:
    """The objective; see the module docstring for its equation."""

    num_outputs = 2
    default_evaluations = 1

    def __init__(self, config: ImprovedMeanFlowJumpConfig):
        self.config = config

    def check_evaluations(self, num_evaluations: int) -> None:
        """Refuse any number but one: other spans are not trained."""
        check_fixed_evaluations(self.config.kind, self.default_evaluations, num_evaluations)

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
        """Compute the loss of a network that teaches itself; see `Objective.loss`."""
        itself = Teacher(head, condition)
        return self.taught_loss(head, actions, valid, condition, generator, teacher=itself)

    def taught_loss(
        self,
        head: ActionNetwork,
        actions: Float[Tensor, "b horizon a"],
        valid: Bool[Tensor, "b horizon"],
        condition: Condition,
        generator: Generator,
        *,
        teacher: Teacher,
    ) -> Loss:
        """Compute the loss; see `TaughtObjective.taught_loss`.

        `raw_mse` is the velocity's distance from the data, as in flow matching, and `jump_mse` that
        of u from what the teacher says, which is 0 at the start of a training.
        """
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        t = self._draw_times(len(actions), generator).to(actions)
        left = draw_shares_left(len(actions), generator)
        target = noise - actions
        z = actions + t[:, None, None] * target
        predicted = head(z, t, t, condition)
        width = actions.shape[-1]
        average, velocity = predicted[..., :width], predicted[..., width:]
        jump_error = summed_error(average, _said_by(teacher, z, t, left), valid)
        velocity_error = summed_error(velocity, target, valid)
        size = actions[0].numel()
        told = adaptively_weighted(
            jump_error / size, self.config.weight_power, self.config.weight_constant
        )
        count = num_values(target, valid)
        return Loss(
            value=told.mean() + self.config.velocity_weight * (velocity_error / size).mean(),
            figures={
                "raw_mse": velocity_error.detach().sum() / count,
                "jump_mse": jump_error.detach().sum() / count,
                "average_velocity_rms": masked_rms(average.detach().to(jump_error), valid),
            },
        )

    @torch.no_grad()
    def sample(
        self,
        head: ActionNetwork,
        noise: Float[Tensor, "b draws horizon a"],
        condition: Condition,
        num_evaluations: int,
    ) -> Float[Tensor, "b horizon a"]:
        """Jump from noise to data at once; see `Objective.sample`."""
        self.check_evaluations(num_evaluations)
        start = starting_point(noise, self.config.start)
        return jump_to_data(average_velocity(head, condition), start, num_evaluations)

    @torch.no_grad()
    def additivity_residual(
        self,
        head: ActionNetwork,
        noise: Float[Tensor, "b draws horizon a"],
        condition: Condition,
    ) -> Float[Tensor, " b"]:
        """Compare the one jump with one that its velocity leads half of the way.

        See `AdditiveObjective`; six passes.
        """
        start = starting_point(noise, self.config.start)
        t = start.new_ones(len(start))
        one = average_velocity(head, condition)(start, t, t)
        return relative_difference(one, _said_by(Teacher(head, condition), start, t, t / 2))

    def _draw_times(self, batch: int, generator: Generator) -> Float[Tensor, " b"]:
        """Draw times of which the last are 1; the rows of a batch are shuffled."""
        num_uniform = batch - min(round(self.config.noise_share * batch), batch - 1)
        t = torch.ones(batch)
        t[:num_uniform] = torch.rand(num_uniform, generator=generator)
        return t


@torch.no_grad()
def _said_by(
    teacher: Teacher, z: Tensor, t: Float[Tensor, " b"], left: Float[Tensor, " b"]
) -> Float[Tensor, "b horizon a"]:
    """Return what u should be from (z, t) to the data, of a jump that leaves a share of the way."""

    def velocity(z: Tensor, t: Tensor, h: Tensor) -> Tensor:
        return teacher.head(z, t, h, teacher.condition)[..., z.shape[-1] :]

    average = average_velocity(teacher.head, teacher.condition)
    return jump_target(velocity, average, (z, t, t), left)
