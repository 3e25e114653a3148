"""du/dt of an average velocity along a flow, in forward mode.

Knows functions of (z, t, h); nothing about losses. With r fixed and h = t - r, dh/dt = 1: the
tangent of h is 1, not 0.

Source: MeanFlow, arXiv 2505.13447, eq. 8, in the arguments (z, t, h) instead of (z, r, t).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def total_derivative(
    average: Callable[[Tensor, Tensor, Tensor], Tensor],
    tangent: Callable[[Tensor, Tensor], Tensor],
    z: Float[Tensor, "b horizon a"],
    t: Float[Tensor, " b"],
    h: Float[Tensor, " b"],
) -> Float[Tensor, "b horizon a"]:
    """Return du/dt at (z, t, h), without gradient, in the dtype of `z`.

    Lower precision is kept out of both functions: in bfloat16 the derivative over close times
    rounds to zero and the loss silently becomes flow matching.

    Args:
        average: u(z, t, h), the average velocity over [t - h, t].
        tangent: dz/dt at (z, t), the velocity along which to derive.
        z: noisy actions at time t.
        t: times in [0, 1].
        h: spans in [0, t].
    """
    with torch.autocast(z.device.type, enabled=False):
        ones = torch.ones_like(t)
        derivative: Tensor = torch.func.jvp(average, (z, t, h), (tangent(z, t), ones, ones))[1]
    return derivative
