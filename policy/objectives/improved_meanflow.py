"""Improved MeanFlow: an average velocity, tied to a velocity that the network predicts.

Knows actions and time; nothing about cameras, robots or datasets. The velocity v is

    boundary        u(z, t, 0): no extra parameters
    velocity_head   a second output of the network, trained on e - x beside the first

and u is tied to it by the derivative du/dt along v at h = 0, or by a jump of finite length along v
at the span that is left; see `jump.py`. Where a jump leads, the averaged weights say: the place
where two modes part moves with every step of the velocity in training, and a u that learnt from
that velocity would draw actions between the modes. Even that of the averaged weights moves; with
`weight_power` 0.5, which is the distance instead of its square, u takes the side it is told more
often instead of the middle. Where the target is the noisy e - x itself, the error is squared
whatever the power: only then is the mean learnt, which a velocity is.

Source: improved MeanFlow, arXiv 2512.02012; the velocity head as in Lyy-iiis/imeanflow@a1cc3a9:
imf.py: its loss is taken where the gradient pass is, at the drawn h, under the same weight;
averaged weights as a teacher: Mean Teacher, arXiv 1703.01780; a distance for a target by a
teacher: the pseudo-Huber loss of arXiv 2310.14189.
Differs from the source: its velocity head branches off before the last blocks, here both outputs
read the same last layer; jumps, their teacher and their loss are not in it; see
`average_velocity.py` and `time_sampling.py` for the rest.
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
from policy.objectives.base import ActionNetwork, DifferentiableNetwork, Loss, Teacher
from policy.objectives.jump import jump_target
from policy.objectives.masked_error import num_values, summed_error


class ImprovedMeanFlowConfig(AverageVelocityConfig):
    """Settings of improved MeanFlow."""

    kind: Literal["improved_meanflow"] = "improved_meanflow"
    """Names the objective in a saved configuration."""
    tangent: Literal["boundary", "velocity_head"] = "boundary"
    """Where the velocity comes from: the network at h = 0, or its own head, which doubles the last
    layer's width."""
    identity: Literal["derivative", "jump"] = "derivative"
    """How u is tied to that velocity: by du/dt, or by a jump along it: five passes without gradient
    of the averaged weights on the rows that are not `flow_share`, where a derivative costs about
    three. A jump needs a velocity head, which is asked at the spans it is trained at, so that
    `flow_share` may be 0; `raw_mse` is then mostly the distance from what the averaged weights say,
    and `velocity_mse` the one from the data. The adaptive weight is then on what a jump says
    alone."""
    velocity_weight: float = Field(default=1.0, ge=0)
    """Weight of the velocity head's own loss beside the main one; without that head unused."""

    @model_validator(mode="after")
    def _a_jump_learns_from_data(self) -> "ImprovedMeanFlowConfig":
        if self.identity == "derivative":
            return self
        if self.tangent != "velocity_head" or self.velocity_weight == 0:
            raise ValueError(
                f"identity=jump with tangent={self.tangent}, velocity_weight="
                f"{self.velocity_weight:g}: a jump learns of the data through the velocity head "
                f"alone; set tangent=velocity_head and a velocity_weight above 0"
            )
        if self.anchored_share == self.anchored_noise_share == 1:
            raise ValueError(
                "identity=jump with anchored_share=1, anchored_noise_share=1: jumps land at times "
                "below 1, where nothing would be trained; lower one of them"
            )
        return self


class ImprovedMeanFlow(AverageVelocityObjective):
    """The objective; see the module docstring."""

    def __init__(self, config: ImprovedMeanFlowConfig):
        super().__init__(config)
        self.config = config
        self.num_outputs = 2 if config.tangent == "velocity_head" else 1

    @property
    def is_taught(self) -> bool:
        """Jumps are; see `TaughtObjective.is_taught`."""
        return self.config.identity == "jump"

    def loss(
        self,
        head: DifferentiableNetwork,
        actions: Float[Tensor, "b horizon a"],
        valid: Bool[Tensor, "b horizon"],
        condition: Condition,
        generator: Generator,
    ) -> Loss:
        """Compute the loss of a network that teaches itself; see `Objective.loss`."""
        return self.taught_loss(
            head, actions, valid, condition, generator, teacher=Teacher(head, condition)
        )

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
        """Compute the loss; see `TaughtObjective.taught_loss`. A derivative asks no teacher."""
        drawn = self.draw(actions, generator)
        width = actions.shape[-1]
        predicted = head(drawn.z, drawn.t, drawn.h, condition)
        average = predicted[..., :width]
        is_jump = self.config.identity == "jump"
        if is_jump:
            error = summed_error(average, self._jump_target(teacher, drawn, generator), valid)
            noisy, exact = error[: drawn.spans.start], error[drawn.spans]
            value = torch.cat([noisy, self.weighted(exact)]).mean()
            loss = Loss(value, figures_of(error, average, valid))
        else:
            tangent = _velocity(head, drawn, condition)
            loss = self.compound_loss(
                average, drawn, valid, head=head, condition=condition, tangent=tangent
            )
        if self.config.tangent == "boundary":
            return loss
        error = summed_error(predicted[..., width:], drawn.target, valid)
        velocity_mse = error.detach().sum() / num_values(drawn.target, valid)
        velocity_loss = (error if is_jump else self.weighted(error)).mean()
        return Loss(
            loss.value + self.config.velocity_weight * velocity_loss,
            loss.figures | {"velocity_mse": velocity_mse},
        )

    @torch.no_grad()
    def _jump_target(self, teacher: Teacher, drawn: NoisyActions, generator: Generator) -> Tensor:
        """Return e - x where h = 0, and elsewhere what a jump says."""
        width = drawn.z.shape[-1]
        rows = teacher.condition.select(drawn.spans)
        at = drawn.z[drawn.spans], drawn.t[drawn.spans], drawn.h[drawn.spans]

        def velocity(z: Tensor, t: Tensor, h: Tensor) -> Tensor:
            return teacher.head(z, t, h, rows)[..., width:]

        average = average_velocity(teacher.head, rows)
        target = drawn.target.clone()
        target[drawn.spans] = jump_target(velocity, average, at, generator).to(target)
        return target


@torch.no_grad()
def _velocity(head: ActionNetwork, drawn: NoisyActions, condition: Condition) -> Tensor:
    """Ask the network for the velocity at the rows that need du/dt, in full precision."""
    z, t = drawn.z[drawn.spans], drawn.t[drawn.spans]
    with torch.autocast(z.device.type, enabled=False):
        answer = head(z, t, torch.zeros_like(t), condition.select(drawn.spans).detach())
    # The last chunk is the velocity head's where there is one, and u itself elsewhere.
    return answer[..., -z.shape[-1] :]
