"""Closed forms that the head's mathematics is tested against; numpy-like torch code, no head.

For x ~ N(mean, spread^2) and e ~ N(0, 1), z_t = (1-t) x + t e has a known velocity and a known
average velocity; the tests check both against the MeanFlow identity.
"""

import torch
from torch import Tensor

from policy.head import Condition

NO_CONDITION = Condition(())


class GaussianFlow:
    """The exact average velocity of Gaussian data, as a network would return it."""

    def __init__(self, mean: float, spread: float):
        self.mean = mean
        self.spread = spread

    def sigma(self, t: Tensor) -> Tensor:
        return ((1 - t) ** 2 * self.spread**2 + t**2).sqrt()

    def velocity(self, z: Tensor, t: Tensor) -> Tensor:
        slope = (t - (1 - t) * self.spread**2) / self.sigma(t) ** 2
        return -self.mean + slope * (z - (1 - t) * self.mean)

    def __call__(self, z: Tensor, t: Tensor, h: Tensor, condition: Condition) -> Tensor:
        t, h = t[:, None, None], h[:, None, None]
        r = t - h
        target = (1 - r) * self.mean + self.sigma(r) / self.sigma(t) * (z - (1 - t) * self.mean)
        average = (z - target) / torch.where(h > 0, h, 1.0)
        return torch.where(h > 0, average, self.velocity(z, t))
