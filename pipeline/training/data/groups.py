"""Groups of blocks in memory: one is trained on while a thread reads the next one.

Knows stores, blocks and buffers; nothing about batches. Every unit is checked against its commit
record whenever it is read, and the stores against those that the training began with.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float16, Int64
from torch import Tensor

from pipeline.errors import StoreError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.training.data.blocks import Block, EpochGroups, GroupKey
from pipeline.training.data.first_pass import KeptFeatures
from pipeline.training.data.steps import StepData
from pipeline.training.data.stores import unreplaced
from policy.spec import FEATURE_DIM


@dataclass(frozen=True)
class Group:
    """The training windows of some blocks, in the order in which they are drawn."""

    rows: Int64[Tensor, " n"]
    """Their current steps."""
    places: Int64[Tensor, " n"]
    """Where `features` holds them; the steps before a current step lie before it."""
    features: Float16[Tensor, "c s 768"]
    """Of the blocks' rows, variants included."""


class GroupReader:
    """Two buffers of features that take turns."""

    def __init__(
        self,
        data: StepData,
        stores: Sequence[FeatureStore],
        digests: Sequence[str],
        *,
        blocks: Sequence[Block],
        kept: KeptFeatures,
        epochs: EpochGroups,
        capacity: int,
        num_before: int,
    ):
        """Take room; nothing is read yet.

        Args:
            data: the run's rows.
            stores: that the blocks are of.
            digests: of the stores, as the training began.
            blocks: this process's own.
            kept: holds, among others, the rows before a block that its first windows observe.
            epochs: which blocks make a group.
            capacity: rows of a buffer; a block takes its own and `num_before` more.
            num_before: observation steps before the current one.
        """
        self._data, self._stores, self._digests = data, stores, tuple(digests)
        self._blocks, self._kept, self._epochs = blocks, kept, epochs
        self._num_before = num_before
        shape = (capacity, stores[0].attributes.num_slots, FEATURE_DIM)
        self._buffers = [torch.from_numpy(np.empty(shape, np.float16)) for _ in range(2)]
        self._free = 0
        self._current: tuple[GroupKey, Group] | None = None
        self._ahead: tuple[GroupKey, Future[Group]] | None = None
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._is_closed = threading.Event()

    def group(self, key: GroupKey) -> Group:
        """Return a group, and begin to read the one after it; the group before it is gone.

        Raises:
            StoreError: a unit is damaged, or a store is not the one that the training began with.
        """
        if self._current is None or self._current[0] != key:
            if self._ahead is not None and self._ahead[0] != key:
                self._ahead[1].result()  # somebody leaps: the buffer is still written to
                self._ahead = None
            reading = self._ahead or self._begin(key)
            self._current = key, reading[1].result()
            self._free = 1 - self._free
            self._ahead = self._begin(self._epochs.after(key))
        return self._current[1]

    def close(self) -> None:
        """Stop reading, at the end of the unit that is being read."""
        self._is_closed.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, key: GroupKey) -> tuple[GroupKey, Future[Group]]:
        blocks = [self._blocks[number] for number in self._epochs.groups(key.epoch)[key.number]]
        generator = self._epochs.generator(f"windows of group {key.number}", key.epoch)
        return key, self._pool.submit(self._read, blocks, generator, self._buffers[self._free])

    def _read(self, blocks: Sequence[Block], generator: torch.Generator, buffer: Tensor) -> Group:
        rows, places, place = [], [], 0
        with unreplaced(self._stores) as digests:
            self._check(digests)
            for block in blocks:
                if self._is_closed.is_set():
                    break
                place += self._num_before
                self._read_block(block, buffer, place)
                own = _within(self._data.train_rows, block.start, block.stop)
                rows.append(own)
                places.append(own - block.start + place)
                place += block.stop - block.start
        order = torch.randperm(sum(map(len, rows)), generator=generator)
        return Group(torch.cat(rows)[order], torch.cat(places)[order], buffer)

    def _read_block(self, block: Block, buffer: Tensor, place: int) -> None:
        """Read a block's rows, behind those rows before it that its first episode began with."""
        features = self._stores[block.store].read_unit_features(block.unit)
        buffer[place : place + len(features)] = torch.from_numpy(features)
        before = rows_before(self._data, block.start, self._num_before)
        buffer[place - len(before) : place] = self._kept.features[self._kept.places(before)]

    def _check(self, digests: Sequence[str]) -> None:
        for store, ours, now in zip(self._stores, self._digests, digests, strict=True):
            if ours != now:
                raise StoreError(
                    f"{store.path}: not the store that this training began with (digest "
                    f"{now[:12]}, was {ours[:12]}); put that one back, then go on with --resume"
                )


def rows_before(data: StepData, row: int, at_most: int) -> Int64[Tensor, " n"]:
    """Return the rows before one that a training window from that row on may observe."""
    episode = data.episode_of[row]
    if data.is_heldout[episode]:
        return torch.arange(0)
    return torch.arange(max(int(data.first_rows[episode]), row - at_most), row)


def _within(rows: Int64[Tensor, " n"], start: int, stop: int) -> Int64[Tensor, " m"]:
    """Return those of ascending rows that lie in [start, stop)."""
    begin, end = torch.searchsorted(rows, torch.tensor([start, stop])).tolist()
    return rows[begin:end]
