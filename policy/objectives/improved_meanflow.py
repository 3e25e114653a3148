"""Improved MeanFlow with the boundary tangent: the loss, the time sampler and the few-step sampler.

Knows actions and time; nothing about cameras, robots or datasets. Data is at time 0 and noise at
time 1: z_t = (1-t) x + t e. The network predicts the velocity averaged over [r, t], h = t - r:

    V    = u(z, t, h) + h * stopgrad( du/dt ),   du/dt by JVP with tangent (v, 1, 1) in (z, t, h)
    v    = u(z, t, 0)                            the boundary tangent: no extra parameters
    loss = |V - (e - x)|^2 / stopgrad( (|V - (e - x)|^2 + c)^p )

With r fixed, dh/dt = 1: the tangent of h is 1, not 0.

Source: improved MeanFlow, arXiv 2512.02012 (boundary variant); the weighting is from MeanFlow,
arXiv 2505.13447.
Differs from the source: no guidance; half a batch is r = t by position instead of by coin, so that
every step has the same shapes; a share of the items is drawn where a one-step policy asks (t = 1,
r = 0), which the logit-normal sampler reaches about three times in ten thousand.
"""

import itertools
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Generator, Tensor

from policy.head import Condition
from policy.objectives.base import Loss, VelocityField


class ImprovedMeanFlowConfig(BaseModel):
    """Settings of the objective."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["improved_meanflow"] = "improved_meanflow"
    """Names the objective in a saved configuration."""
    time_logit_mean: float = -0.4
    """Mean of the logit of a time; lower samples nearer to the data."""
    time_logit_std: float = Field(default=1.0, gt=0)
    """Spread of the logit of a time."""
    flow_share: float = Field(default=0.5, ge=0, le=1)
    """Share of a batch trained at r = t, which is plain flow matching and costs no JVP."""
    anchored_share: float = Field(default=0.2, ge=0, le=1)
    """Share of a batch drawn at t = 1, r = 0, the query of a one-step policy; never r = t items."""
    weight_power: float = Field(default=1.0, ge=0)
    """p of the adaptive weight; 0 is the plain squared error."""
    weight_constant: float = Field(default=0.01, gt=0)
    """c of the adaptive weight, in summed squared normalised actions."""


class ImprovedMeanFlow:
    """The objective; see the module docstring for its equations."""

    def __init__(self, config: ImprovedMeanFlowConfig):
        self.config = config

    def loss(
        self,
        head: VelocityField,
        actions: Float[Tensor, "b horizon a"],
        valid: Bool[Tensor, "b horizon"],
        condition: Condition,
        generator: Generator,
    ) -> Loss:
        """Compute the loss; see `Objective.loss`."""
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        t, h = (times.to(actions) for times in self.sample_times(len(actions), generator))
        target = noise - actions
        z = actions + t[:, None, None] * target

        average = head(z, t, h, condition)
        spans = slice(self._num_flow_items(len(actions)), None)
        total_derivative = torch.zeros_like(average)
        total_derivative[spans] = self.total_derivative(
            head, z[spans], t[spans], h[spans], condition.select(spans).detach()
        )
        correction = h[:, None, None] * total_derivative
        mask = valid[..., None].to(actions)
        squared_error = ((average + correction - target).square() * mask).sum(dim=(1, 2))
        weight = (squared_error.detach() + self.config.weight_constant) ** -self.config.weight_power
        num_values = mask.sum() * actions.shape[-1]
        return Loss(
            value=(weight * squared_error).mean(),
            figures={
                "raw_mse": squared_error.detach().sum() / num_values,
                "correction_rms": _rms(correction * mask, num_values),
                "average_velocity_rms": _rms(average.detach() * mask, num_values),
            },
        )

    @torch.no_grad()
    def total_derivative(
        self,
        head: VelocityField,
        z: Float[Tensor, "b horizon a"],
        t: Float[Tensor, " b"],
        h: Float[Tensor, " b"],
        condition: Condition,
    ) -> Float[Tensor, "b horizon a"]:
        """Return du/dt along the boundary tangent, without gradient, in the dtype of `z`.

        Lower precision is kept out: in bfloat16 the derivative over close times rounds to zero and
        the loss silently becomes flow matching.
        """
        with torch.autocast(z.device.type, enabled=False):
            velocity = head(z, t, torch.zeros_like(h), condition)
            ones = torch.ones_like(t)
            derivative: Tensor = torch.func.jvp(
                lambda z, t, h: head(z, t, h, condition), (z, t, h), (velocity, ones, ones)
            )[1]
        return derivative

    def sample_times(
        self, batch_size: int, generator: Generator
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Draw times t and spans h = t - r, each in [0, 1].

        Returns:
            t and h; h is 0 for the first `flow_share` of the items, t = h = 1 for the last
            `anchored_share`, and 0 < h <= t between them. The order carries no information about
            the data, whose rows are shuffled.
        """
        config = self.config
        logits = torch.randn(2, batch_size, generator=generator)
        times = torch.sigmoid(logits * config.time_logit_std + config.time_logit_mean)
        t, r = times.amax(dim=0), times.amin(dim=0)
        num_flow = self._num_flow_items(batch_size)
        r[:num_flow] = t[:num_flow]
        num_anchored = min(round(config.anchored_share * batch_size), batch_size - num_flow)
        t[batch_size - num_anchored :] = 1.0
        r[batch_size - num_anchored :] = 0.0
        return t, t - r

    @torch.no_grad()
    def sample(
        self,
        head: VelocityField,
        noise: Float[Tensor, "b horizon a"],
        condition: Condition,
        num_evaluations: int,
    ) -> Float[Tensor, "b horizon a"]:
        """Jump from noise to data in equal steps; see `Objective.sample`."""
        times = torch.linspace(1.0, 0.0, num_evaluations + 1).to(noise)
        z = noise
        for now, after in itertools.pairwise(times):
            t, h = now.expand(len(z)), (now - after).expand(len(z))
            z = z - h[:, None, None] * head(z, t, h, condition)
        return z

    def _num_flow_items(self, batch_size: int) -> int:
        return round(self.config.flow_share * batch_size)


def _rms(values: Tensor, count: Tensor) -> Tensor:
    return (values.square().sum() / count).sqrt()
