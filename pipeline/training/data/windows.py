"""Feature stores that lie in memory whole: a batch is an index gather, there is no data loader.

Knows the stores' features; nothing about the agent.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64
from torch import Tensor

from pipeline.features.store.feature_store import FeatureStore
from pipeline.training.config import TrainConfig
from pipeline.training.data.sampling import BatchSampler, seeded_generator
from pipeline.training.data.steps import Batches, StepData, Windows, select_features
from pipeline.training.distributed import Ranks
from policy.network.normalizer import DataStatistics
from policy.spec import FEATURE_DIM

logger = logging.getLogger(__name__)

STATISTICS_ROWS: Final = 8_192  # rows of features summed at once in float64: 150 MB
TRAINING_BYTES: Final = 4 * 2**30  # of a GPU, left to weights, optimiser and one step's activations


class WindowData(StepData):
    """The arrays of stores in memory."""

    def __init__(self, *stores: FeatureStore, heldout_share: float, weights: Sequence[float] = ()):
        """Load complete stores, checking every unit against its commit record.

        Args:
            stores: as `StepData` takes them.
            heldout_share: as `StepData` takes it.
            weights: as `StepData` takes them.

        Raises:
            StoreError, ConfigError: as `StepData` raises them.
        """
        super().__init__(stores, heldout_share=heldout_share, weights=weights)
        self.features = _read_features(stores)

    @property
    def features_from(self) -> str:
        """Which device's memory holds them."""
        return f"{self.features.device.type} memory"

    def observed_features(
        self, observed: Int64[Tensor, "b t"], variants: Int64[Tensor, "b v"] | None
    ) -> Float[Tensor, "b t v 768"]:
        """Return the features of the rows `observed`, each view in its variant; see `gather`."""
        return select_features(self.features, observed, variants, self.spec.num_views)

    def batches(self, config: TrainConfig, ranks: Ranks) -> "MemoryBatches":
        """Return the batches of a run: as many processes as may be share the same ones."""
        return MemoryBatches(self, config, ranks)

    def move_to(self, device: torch.device) -> None:
        """Move the arrays into a GPU's memory if they fit; batches are gathered where they lie."""
        arrays = (self.features, self.state, self.action)
        num_bytes = sum(array.nbytes for array in arrays)
        if device.type != "cuda":
            return
        if num_bytes + TRAINING_BYTES > torch.cuda.mem_get_info(device)[0]:
            told = "%.1f GB of windows do not fit on %s: batches are gathered in main memory"
            logger.warning(told, num_bytes / 1e9, device)
            return
        self.features, self.state, self.action = (array.to(device) for array in arrays)

    def statistics(self) -> DataStatistics:
        """Return the statistics of the training episodes alone, of the frames as recorded."""
        plain = self.features[:, : self.spec.num_views]
        return self.statistics_with(*_mean_and_std(plain, self.train_rows))


class MemoryBatches(Batches):
    """Every row once an epoch, or by weighted sources; see `BatchSampler`."""

    def __init__(self, data: WindowData, config: TrainConfig, ranks: Ranks):
        self._data, self._config, self._ranks = data, config, ranks
        self._sampler = BatchSampler(
            data.train_rows, config.batch_size, config.seed, draws=data.draws
        )

    def parts(self, step: int) -> Iterator[Windows]:
        """Give this process's parts of the batch of optimiser step `step`, counted from 0."""
        config, agent = self._config, self._config.agent
        rows = self._sampler.batch(step)
        variants = self._data.draw_variants(
            len(rows), seeded_generator(config.seed, "variants", step)
        )
        size = config.batch_size // config.micro_batches
        for part in self._ranks.share(config.micro_batches):
            own = slice(part * size, (part + 1) * size)
            yield self._data.gather(
                rows[own],
                obs_horizon=agent.obs_horizon,
                pred_horizon=agent.head.pred_horizon,
                variants=None if variants is None else variants[own],
            )


def _read_features(stores: Sequence[FeatureStore]) -> Float16[Tensor, "n s d"]:
    """Read every store into its own stretch of one array: never is there a second copy."""
    num_rows, num_slots = sum(store.num_rows for store in stores), stores[0].attributes.num_slots
    features = np.empty((num_rows, num_slots, FEATURE_DIM), np.float16)
    start = 0
    for store in stores:
        store.read_features(into=features[start : start + store.num_rows])
        start += store.num_rows
    return torch.from_numpy(features)


def _mean_and_std(features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Two passes in float64: one pass of squares would cancel where the mean is large."""
    chunks = torch.split(rows, STATISTICS_ROWS)
    mean = torch.stack([features[chunk].double().sum(dim=0) for chunk in chunks]).sum(0) / len(rows)
    squares = [(features[chunk].double() - mean).square().sum(dim=0) for chunk in chunks]
    std = (torch.stack(squares).sum(dim=0) / len(rows)).sqrt()
    return mean, std
