"""What an average velocity should be, by going part of its way and asking for the rest.

Knows actions and time; nothing about cameras, robots or datasets. An average velocity adds up:

    (t - r) u(z_t, r, t) = (z_t - z_s) + (s - r) u(z_s, r, s),    r < s < t

where z_s lies on the trajectory of the velocity through z_t. The MeanFlow identity is this in the
limit s -> t. Its du/dt amplifies every wiggle of the network in t, and carries what is known near
the data to the noise through infinitely many points; a jump of finite length does neither, and its
target is free of the noise of the pair (e, x). It costs passes through the network, without
gradient: two a midpoint step and one for the rest of the way.

Source: the additivity of MeanFlow, arXiv 2505.13447, as a target like SplitMeanFlow's, arXiv
2507.16884. Differs from the source: z_s comes from the velocity, not from u over [s, t], and r < s
is always left for u.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from policy.objectives.flow_sampling import Velocity

SHARE_LEFT: Final = (0.1, 0.6)  # (s - r) / (t - r); 0.3 to 0.9 drew wider modes
MIDPOINT_STEPS: Final = 2  # of the velocity, from t to s; second order in their length


def draw_shares_left(count: int, generator: Generator) -> Float[Tensor, " n"]:
    """Draw how much of its way each jump leaves, on the CPU."""
    low, high = SHARE_LEFT
    return low + (high - low) * torch.rand(count, generator=generator)


def jump_target(
    velocity: Velocity,
    average: Velocity,
    at: tuple[
        Float[Tensor, "n horizon a"],
        Float[Tensor, " n"],
        Float[Tensor, " n"],
    ],
    left: Float[Tensor, " n"],
) -> Float[Tensor, "n horizon a"]:
    """Return what u should be at points (z, t, h), in the dtype of z.

    Args:
        velocity: the instantaneous velocity, asked at the h that is left on its way.
        average: u, asked for the rest of the way.
        at: the points.
        left: the share of h that each jump leaves to u, in [0, 1].
    """
    z, now, rest = at
    left = left.to(z)
    step = (1 - left) * rest / MIDPOINT_STEPS
    passed = torch.zeros_like(z)  # summed velocities; a quotient by h would fail at h = 0
    for _ in range(MIDPOINT_STEPS):
        middle = z - _times(step / 2, velocity(z, now, rest))
        found = velocity(middle, now - step / 2, rest - step / 2)
        z, now, rest = z - _times(step, found), now - step, rest - step
        passed += found
    return _times((1 - left) / MIDPOINT_STEPS, passed) + _times(left, average(z, now, rest))


def _times(factor: Float[Tensor, " n"], chunks: Tensor) -> Tensor:
    return factor[:, None, None] * chunks
