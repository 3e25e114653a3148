"""Feature readers: from one named feature of every view to a vector of the condition.

A reader has weights per view, and standardizes the raw values of a store by the training split's
statistics. A grid is read as a long vector: by channels, keypoints or attention it was read worse
(encoders/README.md).
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from policy.network.normalizer import CONSTANT_STD, FeatureStandardizer
from policy.spec import FrozenModel


class ReaderConfig(FrozenModel):
    """How a cached feature enters the condition."""

    projection_dim: int = Field(default=96, ge=1, le=8_192)
    """Width per view; 96 and 192 are the original design's named experiments."""


class FeatureReader(nn.Module):
    """Standardizes every value of a feature, and maps those of each view to a vector."""

    def __init__(self, config: ReaderConfig, num_views: int, shape: tuple[int, ...]):
        super().__init__()
        self.standardizer = FeatureStandardizer(num_views, shape)
        self.per_view = nn.ModuleList(
            nn.Linear(torch.Size(shape).numel(), config.projection_dim) for _ in range(num_views)
        )

    def forward(self, features: Float[Tensor, "b t v ..."]) -> Float[Tensor, "b t v p"]:
        """Reduce every view; raw features in, as a store keeps them."""
        flat = self.standardizer(features).flatten(start_dim=3)
        return torch.stack([m(flat[:, :, view]) for view, m in enumerate(self.per_view)], dim=2)


class InstructionReaderConfig(FrozenModel):
    """A token of its own for the instruction."""

    modulates_views: bool = True
    """Whether the instruction also scales and shifts the projected views."""


class InstructionReader(nn.Module):
    """From an instruction's vector to a condition token, and to a change of the projected views.

    Instructions of one dataset are similar: their mean would outweigh their differences.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self, config: InstructionReaderConfig, width: int, cond_dim: int, views_width: int
    ):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(()))
        self.token = nn.Linear(width, cond_dim)
        self.modulation = None
        if config.modulates_views:
            self.modulation = nn.Linear(width, 2 * views_width)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def fit(self, vectors: Float[Tensor, "k d"]) -> None:
        """Take mean and spread of the distinct instructions of the training split."""
        centered = vectors - vectors.mean(dim=0)
        spread = centered.square().mean().sqrt()
        self.mean.copy_(vectors.mean(dim=0))
        self.spread.copy_(spread.where(spread > CONSTANT_STD, 1.0))

    def forward(
        self, vectors: Float[Tensor, "b d"], views: Float[Tensor, "b t w"]
    ) -> tuple[Float[Tensor, "b 1 c"], Float[Tensor, "b t w"]]:
        """Return the instruction's token, and the views as it scales and shifts them."""
        words = ((vectors - self.mean) / self.spread)[:, None]
        if self.modulation is not None:
            scale, shift = self.modulation(words).chunk(2, dim=-1)
            views = views * (1 + scale) + shift
        return self.token(words), views
