"""From noise at time 1 to data at time 0 in equal jumps, for objectives that learn velocities.

Knows velocities and time; nothing about how a velocity was learnt. Noise is not drawn again on
the way.
"""

import itertools
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from policy.errors import AgentMismatchError

Start = Literal["gaussian", "zero"]
Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # of (z, t, h)


def starting_point(
    noise: Float[Tensor, "b 1 horizon a"], start: Start
) -> Float[Tensor, "b horizon a"]:
    """Return where sampling starts: the noise itself, or zeros, which make it deterministic."""
    drawn = noise.squeeze(1)
    return torch.zeros_like(drawn) if start == "zero" else drawn


def jump_to_data(
    velocity: Velocity,
    start: Float[Tensor, "b horizon a"],
    num_evaluations: int,
) -> Float[Tensor, "b horizon a"]:
    """Go from time 1 to time 0 in `num_evaluations` jumps z <- z - h velocity(z, t, h).

    Args:
        velocity: of (z, t, h); for an instantaneous velocity, one that ignores h, this is Euler.
        start: at time 1.
        num_evaluations: at least 1.
    """
    times = torch.linspace(1.0, 0.0, num_evaluations + 1).to(start)
    z = start
    for now, after in itertools.pairwise(times):
        t, h = now.expand(len(z)), (now - after).expand(len(z))
        z = z - h[:, None, None] * velocity(z, t, h)
    return z


def check_jumps(num_evaluations: int) -> None:
    """Refuse less than one jump.

    Raises:
        AgentMismatchError: there is none.
    """
    if num_evaluations < 1:
        raise AgentMismatchError(f"num_evaluations={num_evaluations}, want 1 or more")
