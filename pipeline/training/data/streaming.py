"""Feature stores that do not lie in memory: batches from groups of units, read ahead from the disk.

States, actions and episode borders stay in memory, and so do the features of a few rows: those
that the held-out windows need, and those before each unit that its first windows observe.
Everything else passes through two buffers. The batch of a step is a function of seed, memory, step
and this process among those of the run, so that a resumed run needs no saved position.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Final

import numpy as np
import torch
from jaxtyping import Float16, Int64
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.training.config import TrainConfig
from pipeline.training.data.blocks import Block, EpochGroups, blocks_of, share_out
from pipeline.training.data.first_pass import read_through
from pipeline.training.data.groups import GroupReader, rows_before
from pipeline.training.data.sampling import seeded_generator
from pipeline.training.data.steps import Batches, StepData, Windows, select_features
from pipeline.training.distributed import Ranks
from pipeline.training.validation import heldout_sample
from policy.network.normalizer import DataStatistics
from policy.spec import FEATURE_DIM

logger = logging.getLogger(__name__)

MB: Final = 1_000_000  # bytes
WIDEST_SHARES: Final = 1.1  # windows of one process over those of another, before it is said
READ_COPIES: Final = 3  # of a unit while it is read: the file's bytes, a shard's chunks, the array
SUMS_BYTES: Final = 16 * MB  # of the first pass
ORDER_BYTES: Final = 40  # a row of a buffer: its number and place, shuffled, and the shuffling


class StreamedWindowData(StepData):
    """The windows of stores, some groups of units at a time."""

    def __init__(
        self,
        *stores: FeatureStore,
        config: TrainConfig,
        memory: int,
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    ):
        """Read complete stores through once, checking every unit against its commit record.

        Args:
            stores: one or more that agree.
            config: of the run.
            memory: bytes that this process may take for the stores' data; the agent, its optimiser
                and a batch come on top.
            ranks: this process among those of the run; all must call.

        Raises:
            StoreError: as `StepData` raises it; a unit is damaged.
            ConfigError: sources of the stores have weights; the memory does not hold what must
                stay in it; there are fewer units with training windows than processes.
            RankLostError: another process has ended.
        """
        super().__init__(stores, heldout_share=config.heldout_share, weights=())
        if self.draws:
            raise ConfigError(
                "--memory: sources of unequal weight are drawn from features in memory; leave out "
                "--memory, or embed the dataset with equal weights"
            )
        self._stores, self._digests = stores, [store.digest() for store in stores]
        self._config, self._memory, self._ranks = config, memory, ranks
        self._num_before = config.agent.obs_horizon - 1
        self._blocks = blocks_of(stores)
        kept_rows = self._rows_to_keep()
        self._capacity = self._rows_a_buffer(len(kept_rows))
        self._own = self._own_blocks()
        self._closing = ExitStack()
        moments, self._kept = read_through(
            stores,
            self._blocks,
            train_rows=self.train_rows.numpy(),
            kept_rows=kept_rows,
            ranks=ranks,
        )
        mean, std = torch.from_numpy(moments.mean), torch.from_numpy(moments.std())
        self._statistics = self.statistics_with(mean, std)

    @property
    def features_from(self) -> str:
        """The stores, within so much memory."""
        return f"the stores, {self._memory / MB:,.0f} MB in memory"

    def statistics(self) -> DataStatistics:
        """Return the statistics of the training episodes alone, of the frames as recorded."""
        return self._statistics

    def observed_features(
        self, observed: Int64[Tensor, "b t"], variants: Int64[Tensor, "b v"] | None
    ) -> Float16[Tensor, "b t v 768"]:
        """Return the features of held-out windows of the sample; batches have those of training."""
        places = self._kept.places(observed)
        return select_features(self._kept.features, places, variants, self.spec.num_views)

    def batches(self, config: TrainConfig, ranks: Ranks) -> "StreamedBatches":
        """Return the batches of a run: every process draws its own blocks' windows in turn."""
        ends = np.array([block.stop for block in self._own])
        starts = np.array([block.start for block in self._own])
        train_rows = self.train_rows.numpy()
        epochs = EpochGroups(
            np.searchsorted(train_rows, ends) - np.searchsorted(train_rows, starts),
            ends - starts + self._num_before,
            capacity=self._capacity,
            seed=config.seed,
            ranks=ranks,
        )
        reader = GroupReader(
            self,
            self._stores,
            self._digests,
            blocks=self._own,
            kept=self._kept,
            epochs=epochs,
            capacity=self._capacity,
            num_before=self._num_before,
        )
        self._closing.callback(reader.close)
        return StreamedBatches(self, config, ranks, epochs, reader)

    def close(self) -> None:
        """Stop reading."""
        self._closing.close()

    def _rows_to_keep(self) -> Int64[Tensor, " m"]:
        obs_horizon = self._config.agent.obs_horizon
        rows = [self.observed_rows(heldout_sample(self), obs_horizon).flatten()]
        rows += [rows_before(self, block.start, self._num_before) for block in self._blocks]
        return torch.from_numpy(np.unique(torch.cat(rows).numpy()))

    def _own_blocks(self) -> list[Block]:
        borders = torch.tensor([block.start for block in self._blocks] + [len(self.episode_of)])
        num_windows = torch.searchsorted(self.train_rows, borders).diff().numpy()
        owned = share_out(num_windows, self._ranks.size)
        if not all(owned):
            raise ConfigError(
                f"{self._ranks.size} processes cannot share {int((num_windows > 0).sum())} units "
                f"of features, each needs one of its own; start fewer, or leave out --memory"
            )
        if self._ranks.is_primary:
            warn_of_uneven_shares([int(num_windows[blocks].sum()) for blocks in owned])
        return [self._blocks[number] for number in owned[self._ranks.rank]]

    def _rows_a_buffer(self, num_kept: int) -> int:
        """Return how many rows of features each of two buffers may hold."""
        row_bytes = self._stores[0].attributes.num_slots * FEATURE_DIM * 2
        largest = max(block.stop - block.start for block in self._blocks)
        arrays = (self.state, self.action, self.episode_of, self.train_rows, self.heldout_rows)
        steps = sum(array.nbytes for array in arrays)
        kept = num_kept * row_bytes
        reading = READ_COPIES * largest * row_bytes + SUMS_BYTES
        buffered = row_bytes + ORDER_BYTES
        needed = steps + kept + reading + 2 * 2 * (largest + self._num_before) * buffered
        if self._memory < needed:
            raise ConfigError(
                f"--memory {self._memory / MB:,.0f}MB, want {-(-needed // MB):,}MB or more a "
                f"process: {steps / MB:,.0f} of states, actions and episodes, {kept / MB:,.0f} of "
                f"features that stay, the rest for 4 units of {largest:,} steps and reading"
            )
        whole = sum(block.stop - block.start + self._num_before for block in self._blocks)
        return min((self._memory - steps - kept - reading) // (2 * buffered), whole)


class StreamedBatches(Batches):
    """Every window of this process's blocks once in an epoch of its own."""

    def __init__(
        self,
        data: StreamedWindowData,
        config: TrainConfig,
        ranks: Ranks,
        epochs: EpochGroups,
        reader: GroupReader,
    ):
        self._data, self._config, self._ranks = data, config, ranks
        self._epochs, self._reader = epochs, reader

    def parts(self, step: int) -> Iterator[Windows]:
        """Give this process's parts of the batch of optimiser step `step`, counted from 0.

        Raises:
            StoreError: a unit is damaged, or a store is not the one that the training began with.
        """
        config, ranks = self._config, self._ranks
        size = config.batch_size // config.micro_batches
        generator = seeded_generator(config.seed, "variants", step * ranks.size + ranks.rank)
        first = step * (config.batch_size // ranks.size)
        for number in range(len(ranks.share(config.micro_batches))):
            yield self._windows(first + number * size, size, generator)

    def _windows(self, first: int, count: int, generator: torch.Generator) -> Windows:
        """Gather draws [first, first + count); the group they begin in may end among them."""
        agent = self._config.agent
        variants = self._data.draw_variants(count, generator)
        observed, features, done = [], [], 0
        while done < count:
            key, place = self._epochs.locate(first + done)
            group = self._reader.group(key)
            rows = group.rows[place : place + count - done]
            seen = self._data.observed_rows(rows, agent.obs_horizon)
            places = group.places[place : place + len(rows), None] + seen - rows[:, None]
            chosen = None if variants is None else variants[done : done + len(rows)]
            views = self._data.spec.num_views
            features.append(select_features(group.features, places, chosen, views))
            observed.append(seen)
            done += len(rows)
        return self._data.assemble(
            torch.cat(observed), torch.cat(features), agent.head.pred_horizon
        )


def warn_of_uneven_shares(num_windows: Sequence[int]) -> None:
    """Say if processes own training windows of numbers that differ by more than a tenth."""
    least, most = min(num_windows), max(num_windows)
    if most > WIDEST_SHARES * least:
        told = (
            "processes own %d to %d training windows and draw equally many, so that those of one "
            "come %.1f times as often as those of another; fewer processes, or a store of smaller "
            "units (vla-embed --shard-above), come closer"
        )
        logger.warning(told, least, most, most / least)
