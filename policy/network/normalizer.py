"""Scaling of states and actions to about [-1, 1], and of features to zero mean and unit spread.

All statistics are buffers, which travel inside a checkpoint's weights. What was constant in
training carries no signal: it enters a network as zero, and a constant action is returned exactly,
whatever the network predicts. States and actions far outside the scale are clipped: one wild
reading moves no input and no action far.
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

CONSTANT_RANGE: Final = 1e-4  # in the unit of the dimension; a smaller range is sensor noise
CONSTANT_STD: Final = 1e-6  # far below float16's resolution of any feature that carries a signal

Scaling = Literal["range", "quantiles", "deviation"]
"""What is mapped to -1 and 1: the smallest and the largest value, the 1 % and the 99 % quantile, or
one standard deviation below and above the mean (more, where five would not reach a quantile)."""

LIMITS: Final[dict[Scaling, float]] = {"range": 1.5, "quantiles": 1.5, "deviation": 5.0}
"""Largest scaled value; 1.5 is a quarter of the range beyond either end. Training data never
reaches that of `range`."""


@dataclass(frozen=True)
class Distribution:
    """How the values of every dimension, in the manifest's units, are distributed in training."""

    minimum: Float[Tensor, " d"]
    maximum: Float[Tensor, " d"]
    low: Float[Tensor, " d"]
    high: Float[Tensor, " d"]
    """1 % and 99 % quantile."""
    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]

    def ends(self, scaling: Scaling) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """Return the values that a scaling maps to -1 and 1.

        A dimension that is constant between its quantiles is a switch that is seldom closed: its
        range counts in every scaling, since any other would clip the closed state away.
        """
        low, high = self.minimum, self.maximum
        if scaling == "quantiles":
            low, high = self.low, self.high
        elif scaling == "deviation":
            # Neither quantile is clipped: of a switch, one is the seldom closed state.
            far = torch.maximum(self.high - self.mean, self.mean - self.low) / LIMITS[scaling]
            spread = torch.maximum(self.std, far)
            low, high = self.mean - spread, self.mean + spread
        is_switch = self.high - self.low <= CONSTANT_RANGE
        return self.minimum.where(is_switch, low), self.maximum.where(is_switch, high)


@dataclass(frozen=True)
class DataStatistics:
    """Statistics of the training split, from which an agent scales its inputs and outputs."""

    feature_mean: dict[str, Float[Tensor, "v ..."]]
    feature_std: dict[str, Float[Tensor, "v ..."]]
    """Mean and standard deviation of every value of every feature, per view."""
    state: Distribution
    action: Distribution
    instructions: Float[Tensor, "k d"] | None = None
    """Vectors of the distinct instructions; None without any."""


class Normalizer(nn.Module):
    """Maps the ends of a scaling to -1 and 1 per dimension; a constant dimension to 0 and back."""

    center: Tensor
    half_range: Tensor

    def __init__(self, dim: int, scaling: Scaling = "range"):
        super().__init__()
        self._scaling: Scaling = scaling
        self._limit = LIMITS[scaling]
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("half_range", torch.ones(dim))

    def fit(self, distribution: Distribution) -> None:
        """Take the scale of every dimension from finite values."""
        low, high = distribution.ends(self._scaling)
        half_range = (high - low) / 2
        self.center.copy_(low + half_range)
        self.half_range.copy_(half_range.where(high - low > CONSTANT_RANGE, 0.0))

    def normalize(self, values: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Scale physical values, and clip them to the scaling's limit."""
        scale = self.half_range.where(self.half_range > 0, torch.inf)
        return ((values - self.center) / scale).clamp(-self._limit, self._limit)

    def unnormalize(self, values: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Clip scaled values to the scaling's limit, and map them back to physical values."""
        return values.clamp(-self._limit, self._limit) * self.half_range + self.center


class FeatureStandardizer(nn.Module):
    """Gives the features of every view zero mean and unit spread over the training split."""

    mean: Tensor
    std: Tensor

    def __init__(self, num_views: int, shape: tuple[int, ...]):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_views, *shape))
        self.register_buffer("std", torch.ones(num_views, *shape))

    def fit(self, mean: Float[Tensor, "v ..."], std: Float[Tensor, "v ..."]) -> None:
        """Take mean and standard deviation of every value; a constant one is mapped to zero."""
        self.mean.copy_(mean)
        # Zero, not infinity: buffers are averaged as weights are, and inf - inf is NaN.
        self.std.copy_(std.where(std > CONSTANT_STD, 0.0))

    def forward(self, features: Float[Tensor, "b t v ..."]) -> Float[Tensor, "b t v ..."]:
        """Standardize raw features."""
        return (features - self.mean) / self.std.where(self.std > 0, torch.inf)
