"""MeanFlow and improved MeanFlow: a velocity averaged over [r, t], trained by its derivative.

With h = t - r, both learn u(z, t, h) from

    V    = u(z, t, h) + h * stopgrad( du/dt ),   du/dt along (v, 1, 1) in (z, t, h)
    loss = |V - (e - x)|^2 / stopgrad( (|V - (e - x)|^2 + c)^p )

and differ in the tangent v of du/dt:

    MeanFlow                           e - x of the drawn pair
    improved MeanFlow, boundary        u(z, t, 0): no extra parameters
    improved MeanFlow, velocity_head   a second output of the network at h = 0, trained on e - x in
                                       addition to the first

MeanFlow writes the same error as u - stopgrad( (e - x) - h du/dt ): same value, same gradient.

Source: MeanFlow, arXiv 2505.13447 (identity, weighting, sampler; three quarters of the items at
r = t, p = 1); improved MeanFlow, arXiv 2512.02012; times and velocity head as in
Lyy-iiis/imeanflow@a1cc3a9:imf.py: that head's loss is taken where the gradient pass is, at the
drawn h, under the same weight.
Differs from the source: no guidance; both outputs read the last layer, where its velocity head
branches off before the last blocks. A share of the items ends at the data (r = 0): the logit-normal
sampler reaches the query of a one-step policy (t = 1, r = 0) about three times in ten thousand.
These anchored items are drawn at that query, or in part at every t: the identity then carries what
is known at small t along r = 0 up to it, instead of leaving it to extrapolation.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Generator

from policy.objectives.base import (
    ActionNetwork,
    Batch,
    Chunks,
    Loss,
    Noise,
    Objective,
    Predictor,
    Times,
)
from policy.objectives.flow_matching import StartConfig, jump_to_data


class AverageVelocityConfig(StartConfig):
    """Settings that MeanFlow and improved MeanFlow share."""

    time_logit_mean: float = -0.4
    time_logit_std: float = Field(default=1.0, gt=0)
    """Mean and spread of the logit of a time; a lower mean samples nearer to the data."""
    flow_share: float = Field(default=0.5, ge=0, le=1)
    """Share of a batch trained at r = t, which is plain flow matching and costs no JVP."""
    anchored_share: float = Field(default=0.2, ge=0, le=1)
    """Share of a batch drawn at r = 0, the end of a one-step policy; never r = t items."""
    anchored_noise_share: float = Field(default=1.0, ge=0, le=1)
    """Share of those at t = 1, where a one-step policy is evaluated; the others are uniform in
    [0, 1], which its output builds on."""
    weight_power: float = Field(default=1.0, ge=0)
    """p of the adaptive weight; 0 is the plain squared error."""
    weight_constant: float = Field(default=0.01, gt=0)
    """c of the adaptive weight, in summed squared normalized actions."""


class MeanFlowConfig(AverageVelocityConfig):
    """Settings of MeanFlow; as in its source, no item is drawn at the one-step query."""

    kind: Literal["meanflow"] = "meanflow"
    flow_share: float = Field(default=0.75, ge=0, le=1)
    anchored_share: float = Field(default=0.0, ge=0, le=1)


class ImprovedMeanFlowConfig(AverageVelocityConfig):
    """Settings of improved MeanFlow."""

    kind: Literal["improved_meanflow"] = "improved_meanflow"
    tangent: Literal["boundary", "velocity_head"] = "boundary"
    """Where the velocity along which to derive comes from: the network at h = 0, or its own head,
    which doubles the last layer's width."""
    velocity_weight: float = Field(default=1.0, gt=0)
    """Weight of the velocity head's own loss, added to the main one; without that head unused."""


class JumpObjective(Objective):
    """An objective that learns average velocities u(z, t, h), which jump from noise to data."""

    config: StartConfig

    def _sample(self, network: Predictor, noise: Noise, nfe: int) -> Chunks:
        return jump_to_data(average_velocity(network), self.config.starting_point(noise), nfe)


class MeanFlow(JumpObjective):
    """MeanFlow or improved MeanFlow, as the configuration's kind is."""

    config: MeanFlowConfig | ImprovedMeanFlowConfig

    def __init__(self, config: MeanFlowConfig | ImprovedMeanFlowConfig):
        super().__init__(config)
        if isinstance(config, ImprovedMeanFlowConfig) and config.tangent == "velocity_head":
            self.num_outputs = 2

    def loss(self, head: ActionNetwork, batch: Batch) -> Loss:
        config, noise = self.config, batch.draw_noise()
        times = sample_times(config, len(noise), batch.generator)
        t, h = (drawn.to(noise) for drawn in times)
        target = noise - batch.actions
        z = batch.actions + t[:, None, None] * target
        predicted = head(z, t, h, batch.condition)
        width = target.shape[-1]
        average = predicted[..., :width]
        spans = slice(_num_flow_items(config, len(noise)), None)  # h > 0: these need du/dt
        at = z[spans], t[spans], h[spans]
        condition = batch.condition.select(spans).detach()
        tangent = target[spans]
        if isinstance(config, ImprovedMeanFlowConfig):
            with torch.no_grad():
                known = head(at[0], at[1], torch.zeros_like(at[2]), condition)
            tangent = known[..., -width:]  # the last output, be it u itself
        derivative = torch.zeros_like(z)
        derivative[spans] = head.derivative(*at, condition, tangent)[..., :width]
        correction = h[:, None, None] * derivative
        error = batch.summed_error(average + correction, target)
        values = average.detach().to(error)
        weight = config.weight_power, config.weight_constant
        value = adaptively_weighted(error, *weight).mean()
        figures = {
            "raw_mse": error.detach().sum() / batch.num_values(values),
            "average_velocity_rms": batch.root_mean_square(values),
            "correction_rms": batch.root_mean_square(correction),
        }
        if isinstance(config, ImprovedMeanFlowConfig) and self.num_outputs == 2:
            own = batch.summed_error(predicted[..., width:], target)
            value = value + config.velocity_weight * adaptively_weighted(own, *weight).mean()
            figures["velocity_mse"] = own.detach().sum() / batch.num_values(target)
        return Loss(value, figures)


def adaptively_weighted(error: Times, power: float, constant: float) -> Times:
    """Divide each row's squared error by its own (error + constant)^power, without gradient.

    Source: MeanFlow. Power 0 leaves errors as they are; 0.5 makes them distances, for small
    constants; 1 gives each the same weight.
    """
    return error * (error.detach() + constant) ** -power


def average_velocity(network: Predictor) -> Predictor:
    """Return u(z, t, h), the first, or only, output of a network."""
    return lambda z, t, h: network(z, t, h)[..., : z.shape[-1]]


def _num_flow_items(config: AverageVelocityConfig, batch_size: int) -> int:
    # The first of a batch, not random ones as in the source: every step has the same shapes.
    return round(config.flow_share * batch_size)


def sample_times(
    config: AverageVelocityConfig, batch_size: int, generator: Generator
) -> tuple[Times, Times]:
    """Draw times t and spans h = t - r, each in [0, 1].

    h is 0 for the first `flow_share` of the items, h = t for the last `anchored_share`, of which
    the last `anchored_noise_share` are at t = 1, and 0 < h <= t between them. The order carries no
    information about the data, whose rows are shuffled.
    """
    logits = torch.randn(2, batch_size, generator=generator)
    times = torch.sigmoid(logits * config.time_logit_std + config.time_logit_mean)
    t, r = times.amax(dim=0), times.amin(dim=0)
    num_flow = _num_flow_items(config, batch_size)
    r[:num_flow] = t[:num_flow]
    num_anchored = min(round(config.anchored_share * batch_size), batch_size - num_flow)
    num_uniform = num_anchored - round(config.anchored_noise_share * num_anchored)
    anchored = slice(batch_size - num_anchored, None)
    t[anchored] = 1.0
    t[anchored][:num_uniform] = torch.rand(num_uniform, generator=generator)
    r[anchored] = 0.0
    return t, t - r
