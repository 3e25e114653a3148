"""Flow matching: the velocity from noise to data, integrated with Euler steps.

    loss = |v(z, t) - (e - x)|^2,   t uniform in [0, 1];   the network is evaluated at h = 0

Its sampler, `jump_to_data`, is also that of the objectives that learn average velocities.

Source: rectified flow, arXiv 2209.03003, and flow matching, arXiv 2210.02747; uniform times as in
simchowitzlabpublic/much-ado-about-noising@0862af9:mip/losses.py, whose time runs the other way.
"""

import itertools
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from policy.objectives.base import (
    ActionNetwork,
    Batch,
    Loss,
    Objective,
    ObjectiveSettings,
    Predictor,
)
from policy.objectives.masked_error import mean_error

Start = Literal["gaussian", "zero"]


class FlowMatchingConfig(ObjectiveSettings):
    """Settings of flow matching."""

    kind: Literal["flow_matching"] = "flow_matching"
    """Names the objective in a saved configuration."""
    start: Start = "gaussian"
    """Where sampling starts; `zero` always gives the same, most central actions."""


class FlowMatching(Objective):
    """The objective; see the module docstring for its equation."""

    default_evaluations = 10  # Euler steps; pi0, arXiv 2410.24164, and as many as DDIM here

    def __init__(self, config: FlowMatchingConfig):
        self.config = config

    def loss(self, head: ActionNetwork, batch: Batch, *, teacher: Predictor | None = None) -> Loss:
        """Compute the loss; see `Objective.loss`."""
        noise = batch.draw_noise()
        t = torch.rand(len(noise), generator=batch.generator).to(noise)
        target = noise - batch.actions
        z = batch.actions + t[:, None, None] * target
        velocity = head(z, t, torch.zeros_like(t), batch.condition)
        error = mean_error(velocity, target, batch.valid)
        return Loss(error, {"raw_mse": error.detach()})

    @torch.no_grad()
    def sample(
        self,
        network: Predictor,
        noise: Float[Tensor, "b draws horizon a"],
        nfe: int,
    ) -> Float[Tensor, "b horizon a"]:
        """Integrate from noise to data; see `Objective.sample`."""
        self.check_evaluations(nfe)
        return jump_to_data(
            lambda z, t, h: network(z, t, torch.zeros_like(h)),
            starting_point(noise, self.config.start),
            nfe,
        )


def starting_point(
    noise: Float[Tensor, "b 1 horizon a"], start: Start
) -> Float[Tensor, "b horizon a"]:
    """Return where sampling starts: the noise itself, or zeros, which make it deterministic."""
    drawn = noise.squeeze(1)
    return torch.zeros_like(drawn) if start == "zero" else drawn


def jump_to_data(
    velocity: Predictor, start: Float[Tensor, "b horizon a"], nfe: int
) -> Float[Tensor, "b horizon a"]:
    """Go from time 1 to time 0 in equal jumps z <- z - h velocity(z, t, h), without new noise.

    Args:
        velocity: of (z, t, h); for an instantaneous velocity, one that ignores h, this is Euler.
        start: at time 1.
        nfe: the number of jumps, at least 1.
    """
    times = torch.linspace(1.0, 0.0, nfe + 1).to(start)
    z = start
    for now, after in itertools.pairwise(times):
        t, h = now.expand(len(z)), (now - after).expand(len(z))
        z = z - h[:, None, None] * velocity(z, t, h)
    return z
