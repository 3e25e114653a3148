"""One pass over all features before a training that does not hold them: what it must know of all.

Every unit is checked against its commit record on the way. Knows blocks and rows; nothing about
batches. The processes of a run share the pass, and what they learn is the same to the bit, however
many they are: sums are made over fixed stretches of blocks and joined in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float16, Float64, Int64
from torch import Tensor

from pipeline.features.encode.stages import ahead
from pipeline.features.store.feature_store import FeatureStore
from pipeline.training.data.blocks import Block
from pipeline.training.distributed import Ranks
from policy.spec import FEATURE_DIM

STRETCHES: Final = 64  # whose sums are kept apart; 2.4 MB of three views
SUMMED_ROWS: Final = 256  # rows of features summed at once in float64; 4.7 MB of three views


@dataclass(frozen=True)
class Moments:
    """Mean and spread of some rows' features, so that those of more rows can be joined to it."""

    count: int
    """How many rows."""
    mean: Float64[np.ndarray, "v d"]
    """Their mean."""
    squares: Float64[np.ndarray, "v d"]
    """Sum of their squared distances from the mean."""

    @classmethod
    def of(cls, features: Float16[np.ndarray, "n v d"]) -> "Moments":
        """Return those of some rows, one or more."""
        values = features.astype(np.float64)
        mean = values.mean(axis=0)
        values -= mean
        return cls(len(values), mean, np.square(values, out=values).sum(axis=0))

    def joined(self, other: "Moments") -> "Moments":
        """Return those of both.

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
        sample variances", 1979, equations 2.1.
        """
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        shift = other.mean - self.mean
        return Moments(
            count,
            self.mean + shift * (other.count / count),
            self.squares + other.squares + shift**2 * (self.count / count * other.count),
        )

    def std(self) -> Float64[np.ndarray, "v d"]:
        """Return the standard deviation."""
        return np.sqrt(self.squares / self.count)


@dataclass(frozen=True)
class KeptFeatures:
    """Features of a few rows that stay in memory."""

    rows: Int64[Tensor, " m"]
    """Which, ascending."""
    features: Float16[Tensor, "m s 768"]
    """Theirs, variants included."""

    def places(self, rows: Int64[Tensor, "*b"]) -> Int64[Tensor, "*b"]:
        """Return where the features of some of the rows are."""
        return torch.searchsorted(self.rows, rows)


def read_through(
    stores: Sequence[FeatureStore],
    blocks: Sequence[Block],
    *,
    train_rows: Int64[np.ndarray, " n"],
    kept_rows: Int64[Tensor, " m"],
    ranks: Ranks,
) -> tuple[Moments, KeptFeatures]:
    """Read all blocks once.

    Args:
        stores: that the blocks are of.
        blocks: all units of all stores.
        train_rows: rows whose features are summed, as recorded, ascending; one or more.
        kept_rows: rows whose features are kept, ascending.
        ranks: this process among those that share the pass; all must call.

    Returns:
        The moments of the training rows' features, and what is kept; the same in all processes.

    Raises:
        StoreError: a unit is damaged; the message names it.
        RankLostError: another process has ended.
    """
    held = stores[0].attributes
    num_views = len(held.view_names)
    kept = np.zeros((len(kept_rows), held.num_slots, FEATURE_DIM), np.float16)
    nothing = np.zeros((num_views, FEATURE_DIM))
    moments = [Moments(0, nothing, nothing)] * STRETCHES

    def read(number: int) -> Float16[np.ndarray, "n s d"]:
        block = blocks[number]
        return stores[block.store].read_unit_features(block.unit)

    stretch_of = [number * STRETCHES // len(blocks) for number in range(len(blocks))]
    own = [n for n, stretch in enumerate(stretch_of) if stretch % ranks.size == ranks.rank]
    for number, being_read in ahead(read, own, 1):
        block, features = blocks[number], being_read.result()
        summed = train_rows[slice(*np.searchsorted(train_rows, (block.start, block.stop)))]
        for first in range(0, len(summed), SUMMED_ROWS):
            rows = summed[first : first + SUMMED_ROWS] - block.start
            part = Moments.of(features[rows, :num_views])
            moments[stretch_of[number]] = moments[stretch_of[number]].joined(part)
        begin, end = np.searchsorted(kept_rows.numpy(), (block.start, block.stop))
        kept[begin:end] = features[kept_rows.numpy()[begin:end] - block.start]
    # A row is kept by one process and 0 in all others; as integers, the sum is the row to the bit.
    ranks.sum_on_host(torch.from_numpy(kept).view(torch.int32))
    return _joined(moments, ranks), KeptFeatures(kept_rows, torch.from_numpy(kept))


def _joined(moments: Sequence[Moments], ranks: Ranks) -> Moments:
    counts = torch.tensor([part.count for part in moments])
    means = torch.from_numpy(np.stack([part.mean for part in moments]))
    squares = torch.from_numpy(np.stack([part.squares for part in moments]))
    for tensor in (counts, means, squares):
        ranks.sum_on_host(tensor)
    parts = map(Moments, counts.tolist(), means.numpy(), squares.numpy())
    whole = next(parts)
    for part in parts:
        whole = whole.joined(part)
    return whole
