"""Scaling of states and actions to [-1, 1], and of features to zero mean and unit spread.

All statistics are buffers, so that they travel inside a checkpoint's weights. What was constant in
training carries no signal: it enters a network as zero, whatever its value is live, and an action
that was constant is returned exactly, whatever the network predicts.
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

    feature_mean: dict[str, Float[Tensor, "v ..."]]
    """Mean of every value of every feature, per view."""
    feature_std: dict[str, Float[Tensor, "v ..."]]
    """Standard deviation of every value of every feature, per view."""
    state_min: Float[Tensor, " s"]
    """Smallest state, in the manifest's units."""
    state_max: Float[Tensor, " s"]
    """Largest state, in the manifest's units."""
    action_min: Float[Tensor, " a"]
    """Smallest action, in the manifest's units."""
    action_max: Float[Tensor, " a"]
    """Largest action, in the manifest's units."""


class MinMaxNormalizer(nn.Module):
    """Maps [minimum, maximum] to [-1, 1] per dimension; a constant dimension to 0 and back."""

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
        self.half_range.copy_(half_range.where(maximum - minimum > CONSTANT_RANGE, 0.0))

    def normalize(self, values: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Map physical values to [-1, 1]; values outside the fitted range leave it."""
        scale = self.half_range.where(self.half_range > 0, torch.inf)
        return (values - self.center) / scale

    def unnormalize(self, values: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Map [-1, 1] back to physical values."""
        return values * self.half_range + self.center


class FeatureStandardizer(nn.Module):
    """Gives the features of every view zero mean and unit spread over the training split."""

    mean: Tensor
    std: Tensor

    def __init__(self, num_views: int, shape: tuple[int, ...], *, per_channel: bool = False):
        """Prepare for features of a shape.

        Args:
            num_views: cameras.
            shape: of the feature, per image; channels last.
            per_channel: one mean and spread per channel, over all positions, which keeps what
                differs between positions; otherwise one per value.
        """
        super().__init__()
        fitted = shape[-1:] if per_channel else shape
        self._positions = tuple(range(1, len(shape))) if per_channel else ()
        self._broadcast = (num_views, *(1 for _ in self._positions), *fitted)
        self.register_buffer("mean", torch.zeros(num_views, *fitted))
        self.register_buffer("std", torch.ones(num_views, *fitted))

    def fit(self, mean: Float[Tensor, "v ..."], std: Float[Tensor, "v ..."]) -> None:
        """Take mean and standard deviation of every value; a constant one is mapped to zero."""
        if self._positions:
            # The spread over steps and positions, from that over steps at each position.
            center = mean.mean(dim=self._positions, keepdim=True)
            variance = (std.square() + (mean - center).square()).mean(dim=self._positions)
            mean, std = center.reshape(self.mean.shape), variance.sqrt()
        self.mean.copy_(mean)
        self.std.copy_(std.where(std > CONSTANT_STD, torch.inf))

    def forward(self, features: Float[Tensor, "b t v ..."]) -> Float[Tensor, "b t v ..."]:
        """Standardize raw features."""
        mean, std = self.mean.view(self._broadcast), self.std.view(self._broadcast)
        return (features - mean) / std
