"""Scaling of states and actions to [-1, 1], and of features to zero mean and unit spread.

Knows tensors and their statistics; where those come from is the trainer's business. All statistics
are buffers, so that they travel inside a checkpoint's weights.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

CONSTANT_RANGE: Final = 1e-4  # in the unit of the dimension; a smaller range is sensor noise
CONSTANT_STD: Final = 1e-6  # far below float16's resolution of any feature that carries a signal


@dataclass(frozen=True)
class DataStatistics:
    """Statistics of the training split, from which an agent scales its inputs and outputs."""

    feature_mean: Float[Tensor, "v d"]
    """Mean of every feature, per view."""
    feature_std: Float[Tensor, "v d"]
    """Standard deviation of every feature, per view."""
    state_min: Float[Tensor, " s"]
    """Smallest state, in the manifest's units."""
    state_max: Float[Tensor, " s"]
    """Largest state, in the manifest's units."""
    action_min: Float[Tensor, " a"]
    """Smallest action, in the manifest's units."""
    action_max: Float[Tensor, " a"]
    """Largest action, in the manifest's units."""


class MinMaxNormalizer(nn.Module):
    """Maps [minimum, maximum] to [-1, 1] per dimension; a constant dimension maps to 0 and back."""

    center: Tensor
    half_range: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("half_range", torch.ones(dim))

    def fit(self, minimum: Float[Tensor, " d"], maximum: Float[Tensor, " d"]) -> None:
        """Take the range of every dimension, both ends finite, `minimum <= maximum`."""
        half_range = (maximum - minimum) / 2
        self.center.copy_(minimum + half_range)
        # Dividing by a tiny range would blow noise up to full scale.
        self.half_range.copy_(half_range.where(maximum - minimum > CONSTANT_RANGE, 1.0))

    def normalize(self, values: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Map physical values to [-1, 1]; values outside the fitted range leave it."""
        return (values - self.center) / self.half_range

    def unnormalize(self, values: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Map [-1, 1] back to physical values."""
        return values * self.half_range + self.center


class FeatureStandardizer(nn.Module):
    """Gives every feature of every view zero mean and unit spread over the training split."""

    mean: Tensor
    std: Tensor

    def __init__(self, num_views: int, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_views, dim))
        self.register_buffer("std", torch.ones(num_views, dim))

    def fit(self, mean: Float[Tensor, "v d"], std: Float[Tensor, "v d"]) -> None:
        """Take mean and standard deviation; a constant feature is only centred."""
        self.mean.copy_(mean)
        self.std.copy_(std.where(std > CONSTANT_STD, 1.0))

    def forward(self, features: Float[Tensor, "*batch v d"]) -> Float[Tensor, "*batch v d"]:
        """Standardise features of any leading shape."""
        return (features - self.mean) / self.std
