"""Flow matching: the velocity from noise to data, integrated with Euler steps.

    loss = |v(z, t) - (e - x)|^2,   t uniform in [0, 1];   the network is evaluated at h = 0

Its sampler, `jump_to_data`, is also that of the objectives that learn average velocities.

Source: rectified flow, arXiv 2209.03003, and flow matching, arXiv 2210.02747; uniform times as in
simchowitzlabpublic/much-ado-about-noising@0862af9:mip/losses.py, whose time runs the other way.
"""

import itertools
from typing import Literal

import torch
from torch import Tensor

from policy.objectives.base import (
    ActionNetwork,
    Batch,
    Chunks,
    Loss,
    Noise,
    Objective,
    ObjectiveSettings,
    Predictor,
)


class StartConfig(ObjectiveSettings):
    """What the settings of samplers that go from noise to data have in common."""

    start: Literal["gaussian", "zero"] = "gaussian"
    """Where sampling starts; `zero` always gives the same, most central actions."""

    def starting_point(self, noise: Noise) -> Chunks:
        """Return the noise [b, 1, horizon, a] itself, or zeros, which make it deterministic."""
        drawn = noise.squeeze(1)
        return torch.zeros_like(drawn) if self.start == "zero" else drawn


class FlowMatchingConfig(StartConfig):
    """Settings of flow matching."""

    kind: Literal["flow_matching"] = "flow_matching"


class FlowMatching(Objective):
    """The objective; see the module docstring for its equation."""

    config: FlowMatchingConfig
    default_evaluations = 10  # Euler steps; pi0, arXiv 2410.24164, and as many as DDIM here

    def loss(self, head: ActionNetwork, batch: Batch) -> Loss:
        noise = batch.draw_noise()
        t = torch.rand(len(noise), generator=batch.generator).to(noise)
        target = noise - batch.actions
        z = batch.actions + t[:, None, None] * target
        velocity = head(z, t, torch.zeros_like(t), batch.condition)
        error = batch.mean_error(velocity, target)
        return Loss(error, {"raw_mse": error.detach()})

    def _sample(self, network: Predictor, noise: Noise, nfe: int) -> Chunks:
        def velocity(z: Tensor, t: Tensor, h: Tensor) -> Tensor:
            return network(z, t, torch.zeros_like(h))

        return jump_to_data(velocity, self.config.starting_point(noise), nfe)


def jump_to_data(velocity: Predictor, start: Chunks, nfe: int) -> Chunks:
    """Go from `start` at time 1 to time 0 in `nfe` equal jumps z <- z - h velocity(z, t, h).

    No new noise comes in. For an instantaneous velocity, one that ignores h, this is Euler.
    """
    times = torch.linspace(1.0, 0.0, nfe + 1).to(start)
    z = start
    for now, after in itertools.pairwise(times):
        t, h = now.expand(len(z)), (now - after).expand(len(z))
        z = z - h[:, None, None] * velocity(z, t, h)
    return z
