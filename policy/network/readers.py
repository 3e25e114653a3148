"""Feature readers: from one named feature of every view to a vector of the condition.

The configuration (`agent.readers`) chooses a reader per feature. Each has weights per view, and
standardizes the raw values of a store with the training split's statistics.
"""

from abc import ABC, abstractmethod
from typing import Annotated, Final, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from policy.errors import AgentMismatchError
from policy.network.normalizer import FeatureStandardizer
from policy.spec import FrozenModel


class _ReaderSettings(FrozenModel):
    kind: str
    projection_dim: int = Field(default=96, ge=1, le=8_192)
    """Width per view; 96 and 192 are the original design's named experiments."""


class LinearReaderConfig(_ReaderSettings):
    """All values of a view through one linear map, standardized value by value."""

    kind: Literal["linear"] = "linear"


class GridReaderConfig(_ReaderSettings):
    """A grid's positions and channels through one linear map, standardized channel by channel."""

    kind: Literal["grid"] = "grid"


class KeypointsReaderConfig(_ReaderSettings):
    """Where learned patterns are on a grid: the expected row and column of a spatial softmax."""

    kind: Literal["keypoints"] = "keypoints"
    num_keypoints: int = Field(default=32, ge=1, le=4_096)
    """Patterns per view; each gives two numbers."""


class AttentionReaderConfig(_ReaderSettings):
    """What learned queries gather from a grid by attention over its positions."""

    kind: Literal["attention"] = "attention"
    num_queries: int = Field(default=8, ge=1, le=4_096)
    """Queries per view, each with a distribution over the positions."""


ReaderConfig = Annotated[
    LinearReaderConfig | GridReaderConfig | KeypointsReaderConfig | AttentionReaderConfig,
    Field(discriminator="kind"),
]


class FeatureReader(nn.Module, ABC):
    """Standardizes the features of each view and reduces them to a vector per view."""

    def __init__(self, standardizer: FeatureStandardizer):
        super().__init__()
        self.standardizer = standardizer

    @abstractmethod
    def _reduce(self, view: int, features: Float[Tensor, "b t ..."]) -> Float[Tensor, "b t p"]:
        """Reduce the standardized features of one view."""

    def forward(self, features: Float[Tensor, "b t v ..."]) -> Float[Tensor, "b t v p"]:
        """Reduce every view; raw features in, as a store keeps them."""
        standardized = self.standardizer(features)
        views = range(standardized.shape[2])
        return torch.stack([self._reduce(view, standardized[:, :, view]) for view in views], dim=2)


class ProjectionReader(FeatureReader):
    """One matrix per view over all of its values: the readers `linear` and `grid`."""

    def __init__(
        self,
        config: LinearReaderConfig | GridReaderConfig,
        num_views: int,
        shape: tuple[int, ...],
    ):
        per_channel = config.kind == "grid"
        super().__init__(FeatureStandardizer(num_views, shape, per_channel=per_channel))
        self.per_view = nn.ModuleList(
            nn.Linear(torch.Size(shape).numel(), config.projection_dim) for _ in range(num_views)
        )

    def _reduce(self, view: int, features: Tensor) -> Tensor:
        projected: Tensor = self.per_view[view](features.flatten(start_dim=2))
        return projected


class KeypointsReader(FeatureReader):
    """A spatial softmax per pattern, then a matrix per view.

    Source: arXiv 1504.00702, section 4.2 (spatial soft argmax).
    """

    coordinates: Tensor

    def __init__(self, config: KeypointsReaderConfig, num_views: int, shape: tuple[int, ...]):
        super().__init__(FeatureStandardizer(num_views, shape, per_channel=True))
        rows, columns, channels = shape
        axes = torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns)
        positions = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
        self.register_buffer("coordinates", positions, persistent=False)
        self.patterns = nn.ModuleList(  # a bias would cancel in the softmax over positions
            nn.Linear(channels, config.num_keypoints, bias=False) for _ in range(num_views)
        )
        self.per_view = nn.ModuleList(
            nn.Linear(2 * config.num_keypoints, config.projection_dim) for _ in range(num_views)
        )

    def _reduce(self, view: int, features: Tensor) -> Tensor:
        scores = self.patterns[view](features.flatten(2, 3))  # [b, t, positions, keypoints]
        expected = scores.softmax(dim=2).transpose(-1, -2) @ self.coordinates
        projected: Tensor = self.per_view[view](expected.flatten(start_dim=2))
        return projected


class AttentionReader(FeatureReader):
    """Learned queries attend to positions, whose channels they average; then a matrix per view."""

    def __init__(self, config: AttentionReaderConfig, num_views: int, shape: tuple[int, ...]):
        super().__init__(FeatureStandardizer(num_views, shape, per_channel=True))
        rows, columns, channels = shape
        width = channels // 2
        self.scale = width**-0.5
        self.queries = nn.Parameter(torch.randn(num_views, config.num_queries, width))
        self.positions = nn.Parameter(0.02 * torch.randn(num_views, rows * columns, channels))
        self.keys = nn.ModuleList(nn.Linear(channels, width, bias=False) for _ in range(num_views))
        self.per_view = nn.ModuleList(
            nn.Linear(channels * config.num_queries, config.projection_dim)
            for _ in range(num_views)
        )

    def _reduce(self, view: int, features: Tensor) -> Tensor:
        tokens = features.flatten(2, 3) + self.positions[view]
        scores = self.queries[view] @ self.keys[view](tokens).transpose(-1, -2) * self.scale
        gathered = scores.softmax(dim=-1) @ tokens  # [b, t, queries, channels]
        projected: Tensor = self.per_view[view](gathered.flatten(start_dim=2))
        return projected


class InstructionReaderConfig(FrozenModel):
    """A token of its own for the instruction."""

    modulates_views: bool = True
    """Whether the instruction also scales and shifts the projected views."""


class InstructionReader(nn.Module):
    """From an instruction's vector to a condition token, and to a change of the projected views.

    Instructions of one dataset are similar: their mean is subtracted, so that what they share does
    not outweigh their differences.
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
        self.spread.copy_(spread.where(spread > 0, 1.0))

    def forward(
        self, vectors: Float[Tensor, "b d"], views: Float[Tensor, "b t w"]
    ) -> tuple[Float[Tensor, "b 1 c"], Float[Tensor, "b t w"]]:
        """Return the instruction's token, and the views as it scales and shifts them."""
        words = ((vectors - self.mean) / self.spread)[:, None]
        if self.modulation is not None:
            scale, shift = self.modulation(words).chunk(2, dim=-1)
            views = views * (1 + scale) + shift
        return self.token(words), views


GRID_AXES: Final = 3  # rows, columns, channels


def build_reader(
    config: ReaderConfig, *, name: str, num_views: int, shape: tuple[int, ...]
) -> FeatureReader:
    """Build the reader of a feature of `shape` per image; `name` is the feature's, for the message.

    Raises:
        AgentMismatchError: a reader of grids is given a feature without positions.
    """
    if config.kind == "linear":
        return ProjectionReader(config, num_views, shape)
    if len(shape) != GRID_AXES:
        raise AgentMismatchError(
            f"reader {config.kind!r} of feature `{name}`: expected (rows, columns, channels), "
            f"found "
            f'shape {list(shape)}; read it with kind="linear"'
        )
    match config:
        case GridReaderConfig():
            return ProjectionReader(config, num_views, shape)
        case KeypointsReaderConfig():
            return KeypointsReader(config, num_views, shape)
        case AttentionReaderConfig():
            return AttentionReader(config, num_views, shape)
