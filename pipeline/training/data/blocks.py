"""Units of stores as blocks of a run's rows: which process owns which, and in which groups.

Knows row numbers, sizes and seeds; reads nothing. A process owns its blocks for the whole run. An
epoch of a process is all its blocks in a shuffled order, cut into groups that fit its memory; the
windows of a group are shuffled among themselves.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64

from pipeline.features.store.feature_store import FeatureStore
from pipeline.training.data.sampling import seeded_generator
from pipeline.training.distributed import Ranks


@dataclass(frozen=True)
class Block:
    """One unit of one of the stores."""

    store: int
    """Number of the store."""
    unit: int
    """Number of the unit in it."""
    start: int
    """Its first row, of the rows of all stores."""
    stop: int
    """One past its last row."""


@dataclass(frozen=True, order=True)
class GroupKey:
    """Which group of which epoch of a process."""

    epoch: int
    number: int


def blocks_of(stores: Sequence[FeatureStore]) -> list[Block]:
    """Return the units of all stores, in the order of their rows."""
    blocks, offset = [], 0
    for number, store in enumerate(stores):
        for unit in range(store.num_units):
            start, stop = store.unit_rows(unit)
            blocks.append(Block(number, unit, offset + start, offset + stop))
        offset += store.num_rows
    return blocks


def share_out(num_windows: Int64[np.ndarray, " u"], num_ranks: int) -> list[list[int]]:
    """Give every block that has windows to one process, so that each gets about as many windows.

    Args:
        num_windows: training windows of every block.
        num_ranks: how many processes.

    Returns:
        The numbers of each process's blocks, ascending. The largest block goes first, each to the
        process that has least, so that two processes differ by less than a block's windows.
    """
    owned: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [(0, rank) for rank in range(num_ranks)]
    for block in np.argsort(-num_windows, kind="stable"):
        if num_windows[block]:
            load, rank = loads[0]
            owned[rank].append(int(block))
            heapq.heapreplace(loads, (load + int(num_windows[block]), rank))
    return [sorted(blocks) for blocks in owned]


class EpochGroups:
    """In which groups a process reads its blocks: a function of seed, epoch and process alone."""

    def __init__(
        self,
        num_windows: Int64[np.ndarray, " b"],
        sizes: Int64[np.ndarray, " b"],
        *,
        capacity: int,
        seed: int,
        ranks: Ranks,
    ):
        """Plan the epochs.

        Args:
            num_windows: training windows of each of the process's blocks.
            sizes: room that each block takes, in the unit of `capacity`.
            capacity: room of a group; that of two of the largest blocks or more.
            seed: of the run.
            ranks: this process among those of the run.
        """
        self._num_windows, self._sizes = num_windows, sizes
        self._seed, self._ranks = seed, ranks
        total = int(sizes.sum())
        # A block may stick out of its even share of an epoch, by less than its own size.
        largest = int(sizes.max())
        self.num_groups = 1 if total <= capacity else -(-total // (capacity - largest))
        self.windows_an_epoch = int(num_windows.sum())
        self._epoch = -1
        self._groups: list[Int64[np.ndarray, " g"]] = []
        self._ends = np.arange(0)

    def groups(self, epoch: int) -> list[Int64[np.ndarray, " g"]]:
        """Return the blocks of every group of an epoch; each block is in one of them."""
        if epoch != self._epoch:
            generator = self.generator("blocks", epoch)
            order = torch.randperm(len(self._sizes), generator=generator).numpy()
            sizes = self._sizes[order]
            group_of = (sizes.cumsum() - sizes) * self.num_groups // int(sizes.sum())
            self._groups = np.split(order, np.flatnonzero(np.diff(group_of)) + 1)
            self._ends = np.cumsum([self._num_windows[group].sum() for group in self._groups])
            self._epoch = epoch
        return self._groups

    def locate(self, window: int) -> tuple[GroupKey, int]:
        """Return the group of the process's `window`-th draw, and its place in the group."""
        epoch, place = divmod(window, self.windows_an_epoch)
        self.groups(epoch)
        number = int(np.searchsorted(self._ends, place, side="right"))
        return GroupKey(epoch, number), place - int(self._ends[number - 1] if number else 0)

    def after(self, key: GroupKey) -> GroupKey:
        """Return the group that follows."""
        is_last = key.number + 1 == len(self.groups(key.epoch))
        return GroupKey(key.epoch + 1, 0) if is_last else GroupKey(key.epoch, key.number + 1)

    def generator(self, purpose: str, epoch: int) -> torch.Generator:
        """Return random numbers that no other process and no other epoch draws."""
        return seeded_generator(self._seed, purpose, epoch * self._ranks.size + self._ranks.rank)
