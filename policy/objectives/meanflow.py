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
r = t, p = 1); improved MeanFlow, arXiv 2512.02012; the velocity head as in
Lyy-iiis/imeanflow@a1cc3a9:imf.py: its loss is taken where the gradient pass is, at the drawn h,
under the same weight.
Differs from the source: no guidance; its velocity head branches off before the last blocks, here
both outputs read the same last layer; see `times.py` for the times.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from policy.objectives.base import (
    ActionNetwork,
    Batch,
    Loss,
    Objective,
    Predictor,
    bind,
)
from policy.objectives.flow_matching import Start, jump_to_data, starting_point
from policy.objectives.masked_error import (
    adaptively_weighted,
    masked_rms,
    num_values,
    summed_error,
)
from policy.objectives.times import TimeSamplingConfig, num_flow_items, sample_times


class AverageVelocityConfig(TimeSamplingConfig):
    """Settings that MeanFlow and improved MeanFlow share."""

    weight_power: float = Field(default=1.0, ge=0)
    """p of the adaptive weight; 0 is the plain squared error."""
    weight_constant: float = Field(default=0.01, gt=0)
    """c of the adaptive weight, in summed squared normalized actions."""
    start: Start = "gaussian"
    """Where sampling starts; `zero` always gives the same, most central actions."""


class MeanFlowConfig(AverageVelocityConfig):
    """Settings of MeanFlow; as in its source, no item is drawn at the one-step query."""

    kind: Literal["meanflow"] = "meanflow"
    """Names the objective in a saved configuration."""
    flow_share: float = Field(default=0.75, ge=0, le=1)
    """Share of a batch trained at r = t, which is plain flow matching and costs no JVP."""
    anchored_share: float = Field(default=0.0, ge=0, le=1)
    """Share of a batch drawn at r = 0, the end of a one-step policy; never r = t items."""


class ImprovedMeanFlowConfig(AverageVelocityConfig):
    """Settings of improved MeanFlow."""

    kind: Literal["improved_meanflow"] = "improved_meanflow"
    """Names the objective in a saved configuration."""
    tangent: Literal["boundary", "velocity_head"] = "boundary"
    """Where the velocity along which to derive comes from: the network at h = 0, or its own head,
    which doubles the last layer's width."""
    velocity_weight: float = Field(default=1.0, gt=0)
    """Weight of the velocity head's own loss, added to the main one; without that head unused."""


@dataclass(frozen=True)
class NoisyActions:
    """Points between actions and noise at which a loss evaluates the network."""

    z: Float[Tensor, "b horizon a"]
    """(1-t) x + t e."""
    t: Float[Tensor, " b"]
    """Times in [0, 1]."""
    h: Float[Tensor, " b"]
    """Spans in [0, t]."""
    target: Float[Tensor, "b horizon a"]
    """e - x, the velocity of this pair."""
    spans: slice
    """The rows with h > 0, which need du/dt."""


class AverageVelocityObjective(Objective):
    """The common part; `MeanFlow` and `ImprovedMeanFlow` add their loss."""

    learns_jumps = True
    config: MeanFlowConfig | ImprovedMeanFlowConfig

    @torch.no_grad()
    def sample(
        self,
        network: Predictor,
        noise: Float[Tensor, "b draws horizon a"],
        nfe: int,
    ) -> Float[Tensor, "b horizon a"]:
        """Jump from noise to data in equal steps; see `Objective.sample`."""
        self.check_evaluations(nfe)
        start = starting_point(noise, self.config.start)
        return jump_to_data(average_velocity(network), start, nfe)

    @torch.no_grad()
    def additivity_residual(
        self, network: Predictor, noise: Float[Tensor, "b draws horizon a"]
    ) -> Float[Tensor, " b"]:
        """Compare one jump with two, root mean squared over the chunk.

        The exact average velocity obeys (t-r) u(z_t,r,t) = (t-s) u(z_t,s,t) + (s-r) u(z_s,r,s);
        here t = 1, s = 0.5, r = 0. The difference is divided by the longer side.
        See `Objective.additivity_residual`.
        """
        start = starting_point(noise, self.config.start)
        velocity = average_velocity(network)
        one, two = (start - jump_to_data(velocity, start, jumps) for jumps in (1, 2))
        return relative_difference(one, two)

    def draw(self, batch: Batch) -> NoisyActions:
        """Mix actions with noise at random times."""
        noise = batch.draw_noise()
        times = sample_times(self.config, len(noise), batch.generator)
        t, h = (drawn.to(noise) for drawn in times)
        target = noise - batch.actions
        return NoisyActions(
            z=batch.actions + t[:, None, None] * target,
            t=t,
            h=h,
            target=target,
            spans=slice(num_flow_items(self.config, len(noise)), None),
        )

    def compound_loss(
        self,
        average: Float[Tensor, "b horizon a"],
        drawn: NoisyActions,
        batch: Batch,
        *,
        head: ActionNetwork,
        tangent: Float[Tensor, "n horizon a"],
    ) -> Loss:
        """Return the loss of V = u + h du/dt.

        Args:
            average: u at the drawn points, with gradient.
            drawn: the points.
            batch: the batch that they were drawn from.
            head: the network, for du/dt.
            tangent: the velocity along which to derive, without gradient, of the rows
                `drawn.spans`.
        """
        spans = drawn.spans
        derivative = torch.zeros_like(drawn.z)
        at = drawn.z[spans], drawn.t[spans], drawn.h[spans], batch.condition.select(spans).detach()
        derivative[spans] = head.derivative(*at, tangent)[..., : tangent.shape[-1]]
        correction = drawn.h[:, None, None] * derivative
        error = summed_error(average + correction, drawn.target, batch.valid)
        values = average.detach().to(error)
        return Loss(
            value=self.weighted(error).mean(),
            figures={
                "raw_mse": error.detach().sum() / num_values(values, batch.valid),
                "average_velocity_rms": masked_rms(values, batch.valid),
                "correction_rms": masked_rms(correction, batch.valid),
            },
        )

    def weighted(self, error: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Put summed squared errors under the adaptive weight."""
        return adaptively_weighted(error, self.config.weight_power, self.config.weight_constant)


class MeanFlow(AverageVelocityObjective):
    """An average velocity, derived along the velocity of the drawn pair."""

    def __init__(self, config: MeanFlowConfig):
        self.config = config

    def loss(self, head: ActionNetwork, batch: Batch, *, teacher: Predictor | None = None) -> Loss:
        """Compute the loss; see `Objective.loss`."""
        drawn = self.draw(batch)
        average = head(drawn.z, drawn.t, drawn.h, batch.condition)
        tangent = drawn.target[drawn.spans]
        return self.compound_loss(average, drawn, batch, head=head, tangent=tangent)


class ImprovedMeanFlow(AverageVelocityObjective):
    """An average velocity, derived along a velocity that the network predicts."""

    def __init__(self, config: ImprovedMeanFlowConfig):
        self.config: ImprovedMeanFlowConfig = config
        self.num_outputs = 2 if config.tangent == "velocity_head" else 1

    def loss(self, head: ActionNetwork, batch: Batch, *, teacher: Predictor | None = None) -> Loss:
        """Compute the loss; see `Objective.loss`."""
        drawn = self.draw(batch)
        width = batch.actions.shape[-1]
        predicted = head(drawn.z, drawn.t, drawn.h, batch.condition)
        tangent = _predicted_velocity(head, drawn, batch)
        loss = self.compound_loss(predicted[..., :width], drawn, batch, head=head, tangent=tangent)
        if self.config.tangent == "boundary":
            return loss
        error = summed_error(predicted[..., width:], drawn.target, batch.valid)
        velocity_mse = error.detach().sum() / num_values(drawn.target, batch.valid)
        return Loss(
            loss.value + self.config.velocity_weight * self.weighted(error).mean(),
            loss.figures | {"velocity_mse": velocity_mse},
        )


@torch.no_grad()
def _predicted_velocity(head: ActionNetwork, drawn: NoisyActions, batch: Batch) -> Tensor:
    """Return the network's velocity at the rows that need du/dt, in full precision."""
    z, t = drawn.z[drawn.spans], drawn.t[drawn.spans]
    network = bind(head, batch.condition.select(drawn.spans).detach())
    with torch.autocast(z.device.type, enabled=False):
        predicted = network(z, t, torch.zeros_like(t))
    # The last chunk is the velocity head's where there is one, and u itself elsewhere.
    return predicted[..., -z.shape[-1] :]


def average_velocity(network: Predictor) -> Predictor:
    """Return u(z, t, h), the first, or only, output of a network."""
    return lambda z, t, h: network(z, t, h)[..., : z.shape[-1]]


def relative_difference(
    first: Float[Tensor, "b horizon a"], second: Float[Tensor, "b horizon a"]
) -> Float[Tensor, " b"]:
    """Return the length of the difference over that of the longer one, in [0, 2]; 0 for zeros."""
    length = torch.maximum(_chunk_rms(first), _chunk_rms(second))
    return _chunk_rms(first - second) / length.clamp_min(torch.finfo(length.dtype).tiny)


def _chunk_rms(chunks: Tensor) -> Tensor:
    return chunks.square().mean(dim=(1, 2)).sqrt()
