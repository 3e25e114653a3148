"""Policies without noise: regression, and the minimal iterative policy (MIP).

With n(z, t) the network at h = 0, whose time is the index of the evaluation (0 knows nothing yet;
elsewhere in this project 0 is data and 1 is noise):

    regression   a = n(0, 0),                    loss = |n(0, 0) - x|^2
    MIP          a0 = n(0, 0),  a = n(a0, s),    s = 0.9
                 loss = |n(0, 0) - x|^2 / s^2 + |n(x + (1-s) e, s) - x|^2 / (1-s)^2,  e ~ N(0, I)

Source: arXiv 2512.01809, in its authors' code, simchowitzlabpublic/much-ado-about-noising@0862af9:
mip/losses.py (`regression_loss`, `mip_loss`) and @08ccfdf:mip/samplers.py (`regression_sampler`,
`mip_sampler`). By a note there, the paper scales the input of MIP's second evaluation by s; the
code, followed here, does not.
Differs from the source: the error is a mean over action values, without the factor of 100.
"""

from typing import Literal

import torch
from pydantic import Field

from policy.objectives.base import (
    ActionNetwork,
    Batch,
    Chunks,
    Loss,
    Noise,
    Objective,
    ObjectiveSettings,
    Predictor,
    bind,
)


class RegressionConfig(ObjectiveSettings):
    """Settings of regression, which has none."""

    kind: Literal["regression"] = "regression"


class MipConfig(ObjectiveSettings):
    """Settings of the minimal iterative policy."""

    kind: Literal["mip"] = "mip"
    second_time: float = Field(default=0.9, gt=0, lt=1)
    """s, the time of the second evaluation, which is trained to remove noise of spread 1 - s from
    normalized actions; nearer to 1 it corrects less, and its errors weigh more."""


class Regression(Objective):
    """The mean action, in one evaluation."""

    is_nfe_fixed = True

    def loss(self, head: ActionNetwork, batch: Batch) -> Loss:
        zeros = torch.zeros_like(batch.actions)
        predicted = _predict(bind(head, batch.condition), zeros, 0.0)
        error = batch.mean_error(predicted, batch.actions)
        return Loss(error, {"raw_mse": error.detach()})

    def _sample(self, network: Predictor, noise: Noise, nfe: int) -> Chunks:
        return _predict(network, torch.zeros_like(noise[:, 0]), 0.0)


class Mip(Objective):
    """Actions in two evaluations, of which the second corrects the first."""

    config: MipConfig
    default_evaluations = 2
    is_nfe_fixed = True

    def loss(self, head: ActionNetwork, batch: Batch) -> Loss:
        second_time = self.config.second_time
        spread = 1 - second_time
        network, zeros = bind(head, batch.condition), torch.zeros_like(batch.actions)
        noisy = batch.actions + spread * batch.draw_noise()
        first = batch.mean_error(_predict(network, zeros, 0.0), batch.actions)
        second = batch.mean_error(_predict(network, noisy, second_time), batch.actions)
        return Loss(
            first / second_time**2 + second / spread**2,
            {"raw_mse": first.detach(), "second_mse": second.detach()},
        )

    def _sample(self, network: Predictor, noise: Noise, nfe: int) -> Chunks:
        first = _predict(network, torch.zeros_like(noise[:, 0]), 0.0)
        return _predict(network, first, self.config.second_time)


def _predict(network: Predictor, actions: Chunks, time: float) -> Chunks:
    """Evaluate the network at the same time in every row and at h = 0."""
    t = actions.new_full((len(actions),), time)
    return network(actions, t, torch.zeros_like(t))
