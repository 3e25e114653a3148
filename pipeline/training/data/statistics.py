"""Mean and spread of features, and ranges of states and actions, over the training episodes.

Features pass by once, in pieces; memory holds the sums of what has passed.
"""

from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float16, Float64, Int64
from torch import Tensor

RANGE_ROWS: Final = 8_192  # rows of states and actions looked at at once
SUMMED_ROWS: Final = 256  # rows of features summed at once in float64; 4.7 MB of three views


class Moments:
    """Mean and spread of all rows that have passed."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Float64[np.ndarray, ...] = np.zeros(())
        self._squares: Float64[np.ndarray, ...] = np.zeros(())
        """Sum of the squared distances from the mean."""

    def add(self, features: Float16[np.ndarray, "n ..."]) -> None:
        """Add rows, of one shape at every call.

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
        sample variances", 1979, equations 2.1.
        """
        for first in range(0, len(features), SUMMED_ROWS):
            values = features[first : first + SUMMED_ROWS].astype(np.float64)
            mean = values.mean(axis=0)
            values -= mean
            squares = np.square(values, out=values).sum(axis=0)
            before, self._count = self._count, self._count + len(values)
            share = len(values) / self._count
            shift = mean - self._mean
            self._mean = self._mean + shift * share
            self._squares = self._squares + squares + shift**2 * (before * share)

    def mean(self) -> Float[Tensor, "..."]:
        """Return the mean; float32."""
        return torch.from_numpy(self._mean).float()

    def std(self) -> Float[Tensor, "..."]:
        """Return the standard deviation; float32."""
        return torch.from_numpy(np.sqrt(self._squares / self._count)).float()


def value_range(
    values: Float[Tensor, "n d"], rows: Int64[Tensor, " m"]
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Return the smallest and the largest value of every column over some rows."""
    chunks = torch.split(rows, RANGE_ROWS)
    lowest = torch.stack([values[chunk].amin(dim=0) for chunk in chunks]).amin(dim=0)
    highest = torch.stack([values[chunk].amax(dim=0) for chunk in chunks]).amax(dim=0)
    return lowest, highest
