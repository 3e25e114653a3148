"""What MeanFlow and improved MeanFlow share: times, weight, sampling, and the loss by du/dt.

Knows actions and time; nothing about cameras, robots or datasets. The network predicts the
velocity averaged over [r, t], h = t - r:

    V    = u(z, t, h) + h * stopgrad( du/dt ),   du/dt along (v, 1, 1) in (z, t, h)
    loss = |V - (e - x)|^2 / stopgrad( (|V - (e - x)|^2 + c)^p )

MeanFlow writes the same error as u - stopgrad( (e - x) - h du/dt ): same value, same gradient.

Source: MeanFlow, arXiv 2505.13447 (identity, weighting, sampler); improved MeanFlow,
arXiv 2512.02012.
Differs from the source: no guidance; see `time_sampling.py` for the times.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Generator, Tensor

from policy.network.head import Condition
from policy.objectives.base import ActionNetwork, DifferentiableNetwork, Loss
from policy.objectives.flow_sampling import (
    Start,
    Velocity,
    check_jumps,
    jump_to_data,
    starting_point,
)
from policy.objectives.masked_error import (
    adaptively_weighted,
    masked_rms,
    num_values,
    summed_error,
)
from policy.objectives.time_sampling import TimeSamplingConfig, num_flow_items, sample_times


class AverageVelocityConfig(TimeSamplingConfig):
    """Settings that MeanFlow and improved MeanFlow share."""

    weight_power: float = Field(default=1.0, ge=0)
    """p of the adaptive weight; 0 is the plain squared error."""
    weight_constant: float = Field(default=0.01, gt=0)
    """c of the adaptive weight, in summed squared normalised actions."""
    start: Start = "gaussian"
    """Where sampling starts; `zero` always gives the same, most central actions."""


@dataclass(frozen=True)
class NoisyActions:
    """Actions on their way to noise, and what the loss asks about them."""

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


class AverageVelocityObjective:
    """The common part; `MeanFlow` and `ImprovedMeanFlow` add their loss."""

    num_outputs: int = 1
    default_evaluations: int = 1  # what an average velocity is learnt for

    def __init__(self, config: AverageVelocityConfig):
        self._settings = config

    def check_evaluations(self, num_evaluations: int) -> None:
        """Refuse less than one pass; see `Objective.check_evaluations`."""
        check_jumps(num_evaluations)

    def num_noise_draws(self, num_evaluations: int) -> int:
        """Return 1, the start; see `Objective.num_noise_draws`."""
        return 1

    @torch.no_grad()
    def sample(
        self,
        head: ActionNetwork,
        noise: Float[Tensor, "b draws horizon a"],
        condition: Condition,
        num_evaluations: int,
    ) -> Float[Tensor, "b horizon a"]:
        """Jump from noise to data in equal steps; see `Objective.sample`."""
        self.check_evaluations(num_evaluations)
        start = starting_point(noise, self._settings.start)
        return jump_to_data(average_velocity(head, condition), start, num_evaluations)

    @torch.no_grad()
    def additivity_residual(
        self,
        head: ActionNetwork,
        noise: Float[Tensor, "b draws horizon a"],
        condition: Condition,
    ) -> Float[Tensor, " b"]:
        """Compare one jump with two, root mean squared over the chunk; see `AdditiveObjective`.

        The exact average velocity obeys (t-r) u(z_t,r,t) = (t-s) u(z_t,s,t) + (s-r) u(z_s,r,s);
        here t = 1, s = 0.5, r = 0. The difference is divided by the longer side.
        """
        start = starting_point(noise, self._settings.start)
        velocity = average_velocity(head, condition)
        one, two = (start - jump_to_data(velocity, start, jumps) for jumps in (1, 2))
        return relative_difference(one, two)

    def draw(self, actions: Float[Tensor, "b horizon a"], generator: Generator) -> NoisyActions:
        """Mix actions with noise at random times."""
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        times = sample_times(self._settings, len(actions), generator)
        t, h = (drawn.to(actions) for drawn in times)
        target = noise - actions
        return NoisyActions(
            z=actions + t[:, None, None] * target,
            t=t,
            h=h,
            target=target,
            spans=slice(num_flow_items(self._settings, len(actions)), None),
        )

    def compound_loss(
        self,
        average: Float[Tensor, "b horizon a"],
        drawn: NoisyActions,
        valid: Bool[Tensor, "b horizon"],
        *,
        head: DifferentiableNetwork,
        condition: Condition,
        tangent: Float[Tensor, "n horizon a"],
    ) -> Loss:
        """Return the loss of V = u + h du/dt.

        Args:
            average: u at the drawn points, with gradient.
            drawn: the points.
            valid: False where a chunk runs past its episode's end.
            head: the network, for du/dt.
            condition: of all rows.
            tangent: the velocity along which to derive, without gradient, of the rows
                `drawn.spans`.
        """
        spans = drawn.spans
        derivative = torch.zeros_like(drawn.z)
        at = drawn.z[spans], drawn.t[spans], drawn.h[spans], condition.select(spans).detach()
        derivative[spans] = head.derivative(*at, tangent)[..., : tangent.shape[-1]]
        correction = drawn.h[:, None, None] * derivative
        error = summed_error(average + correction, drawn.target, valid)
        values = average.detach().to(error)
        return Loss(
            value=self.weighted(error).mean(),
            figures={
                "raw_mse": error.detach().sum() / num_values(values, valid),
                "average_velocity_rms": masked_rms(values, valid),
                "correction_rms": masked_rms(correction, valid),
            },
        )

    def weighted(self, error: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Put summed squared errors under the adaptive weight."""
        settings = self._settings
        return adaptively_weighted(error, settings.weight_power, settings.weight_constant)


def average_velocity(head: ActionNetwork, condition: Condition) -> Velocity:
    """Return u(z, t, h) of a network under a condition: its first, or only, output."""
    return lambda z, t, h: head(z, t, h, condition)[..., : z.shape[-1]]


def relative_difference(
    first: Float[Tensor, "b horizon a"], second: Float[Tensor, "b horizon a"]
) -> Float[Tensor, " b"]:
    """Return the length of the difference over that of the longer one, in [0, 2]; 0 for zeros."""
    length = torch.maximum(_chunk_rms(first), _chunk_rms(second))
    return _chunk_rms(first - second) / length.clamp_min(torch.finfo(length.dtype).tiny)


def _chunk_rms(chunks: Tensor) -> Tensor:
    return chunks.square().mean(dim=(1, 2)).sqrt()
