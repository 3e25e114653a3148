"""Times and spans at which an average velocity is trained.

Source: MeanFlow, arXiv 2505.13447, and improved MeanFlow, arXiv 2512.02012
(Lyy-iiis/imeanflow@a1cc3a9:imf.py).
Differs from the source: a share of the items ends at the data (r = 0), where the logit-normal
sampler hardly goes: it reaches the query of a one-step policy (t = 1, r = 0) about three times in
ten thousand. The anchored items are drawn at that query, or in part at every t: the identity of an
average velocity then carries what is known at small t along r = 0 up to it, instead of leaving it
to the network's extrapolation.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Generator, Tensor

from policy.objectives.base import ObjectiveSettings


class TimeSamplingConfig(ObjectiveSettings):
    """Where between data and noise an average velocity is trained, and over which spans."""

    time_logit_mean: float = -0.4
    """Mean of the logit of a time; lower samples nearer to the data."""
    time_logit_std: float = Field(default=1.0, gt=0)
    """Spread of the logit of a time."""
    flow_share: float = Field(default=0.5, ge=0, le=1)
    """Share of a batch trained at r = t, which is plain flow matching and costs no JVP."""
    anchored_share: float = Field(default=0.2, ge=0, le=1)
    """Share of a batch drawn at r = 0, the end of a one-step policy; never r = t items."""
    anchored_noise_share: float = Field(default=1.0, ge=0, le=1)
    """Share of those at t = 1, where a one-step policy is evaluated; the others are uniform in
    [0, 1], which its output builds on."""


def num_flow_items(config: TimeSamplingConfig, batch_size: int) -> int:
    """Return how many items, the first of a batch, are trained at r = t.

    By position instead of at random, as in the source, so that every step has the same shapes.
    """
    return round(config.flow_share * batch_size)


def sample_times(
    config: TimeSamplingConfig, batch_size: int, generator: Generator
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Draw times t and spans h = t - r, each in [0, 1].

    Returns:
        t and h; h is 0 for the first `flow_share` of the items, h = t for the last
        `anchored_share`, of which the last `anchored_noise_share` are at t = 1, and 0 < h <= t
        between them. The order carries no information about the data, whose rows are shuffled.
    """
    logits = torch.randn(2, batch_size, generator=generator)
    times = torch.sigmoid(logits * config.time_logit_std + config.time_logit_mean)
    t, r = times.amax(dim=0), times.amin(dim=0)
    num_flow = num_flow_items(config, batch_size)
    r[:num_flow] = t[:num_flow]
    num_anchored = min(round(config.anchored_share * batch_size), batch_size - num_flow)
    num_uniform = num_anchored - round(config.anchored_noise_share * num_anchored)
    anchored = slice(batch_size - num_anchored, None)
    t[anchored] = 1.0
    t[anchored][:num_uniform] = torch.rand(num_uniform, generator=generator)
    r[anchored] = 0.0
    return t, t - r
