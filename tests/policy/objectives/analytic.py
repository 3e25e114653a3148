"""Closed forms that the head's mathematics is tested against; numpy-like torch code, no head.

For x ~ N(mean, spread^2) and e ~ N(0, 1), z_t = (1-t) x + t e has a known velocity and a known
average velocity; the tests check both against the MeanFlow identity.
"""

import torch
from torch import Tensor

from policy.network.head import Condition

NO_CONDITION = Condition(())


class JvpNetwork:
    """A closed form of (z, t, h) as a network, with its derivative by torch's own forward mode.

    No condition enters, so the same object is an `ActionNetwork` and a `Predictor`.
    """

    def __init__(self, function=None):
        self.function = function

    def __call__(self, z: Tensor, t: Tensor, h: Tensor, condition=NO_CONDITION) -> Tensor:
        return self.function(z, t, h)

    def derivative(self, z, t, h, condition: Condition, direction: Tensor) -> Tensor:
        return forward_mode_derivative(self, (z, t, h), condition, direction)


def forward_mode_derivative(
    network, point: tuple[Tensor, Tensor, Tensor], condition: Condition, direction: Tensor
) -> Tensor:
    """d/ds network(z + s direction, t + s, h + s) at s = 0, by torch: the independent oracle."""
    ones = torch.ones_like(point[1])
    with torch.no_grad():
        return torch.func.jvp(
            lambda z, t, h: network(z, t, h, condition), point, (direction, ones, ones)
        )[1]


class GaussianFlow(JvpNetwork):
    """The exact average velocity of Gaussian data, as a network would return it."""

    def __init__(self, mean: float, spread: float):
        self.mean = mean
        self.spread = spread

    def sigma(self, t: Tensor) -> Tensor:
        return ((1 - t) ** 2 * self.spread**2 + t**2).sqrt()

    def velocity(self, z: Tensor, t: Tensor) -> Tensor:
        slope = (t - (1 - t) * self.spread**2) / self.sigma(t) ** 2
        return -self.mean + slope * (z - (1 - t) * self.mean)

    def __call__(self, z: Tensor, t: Tensor, h: Tensor, condition=NO_CONDITION) -> Tensor:
        t, h = t[:, None, None], h[:, None, None]
        r = t - h
        target = (1 - r) * self.mean + self.sigma(r) / self.sigma(t) * (z - (1 - t) * self.mean)
        average = (z - target) / torch.where(h > 0, h, 1.0)
        return torch.where(h > 0, average, self.velocity(z, t))
