"""Statistics with known ends, for the tests of whatever scales."""

import torch
from torch import Tensor

from policy.network.normalizer import DataStatistics, Distribution


def between(low: Tensor, high: Tensor) -> Distribution:
    """A distribution whose ends are the same in every scaling."""
    return Distribution(low, high, low, high, (low + high) / 2, (high - low) / 2)


def plain_statistics(
    shapes: dict[str, tuple[int, ...]], *, views: int, state: Distribution, action: Distribution
) -> DataStatistics:
    """Features of zero mean and unit spread, with these states and actions."""
    return DataStatistics(
        {name: torch.zeros(views, *shape) for name, shape in shapes.items()},
        {name: torch.ones(views, *shape) for name, shape in shapes.items()},
        state,
        action,
    )
