"""Mean and spread of features, distributions of states and actions, over the training episodes."""

from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float16, Float64, Int64
from torch import Tensor

from policy.network.normalizer import Distribution

QUANTILES: Final = (0.01, 0.99)  # ends of the scaling `quantiles`
SUMMED_ROWS: Final = 256  # rows of features summed at once in float64; 4.7 MB of three views


class Moments:
    """Mean and spread of all rows that were added."""

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


def distribution(values: Float[Tensor, "n d"], rows: Int64[Tensor, " m"]) -> Distribution:
    """Return the distribution of every column over some rows; one column is copied at a time."""
    found = [_column(values[:, column][rows].numpy()) for column in range(values.shape[1])]
    fields = zip(*found, strict=True)
    return Distribution(*(torch.tensor(field, dtype=torch.float32) for field in fields))


def _column(values: Float[np.ndarray, " m"]) -> tuple[float, ...]:
    """Return the fields of a `Distribution` for one column."""
    low, high = np.quantile(values, QUANTILES)
    wide = values.astype(np.float64)
    figures = (values.min(), values.max(), low, high, wide.mean(), wide.std())
    return tuple(map(float, figures))
