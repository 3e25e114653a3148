"""Which windows a step trains on: shuffled epochs of all rows, or of weighted sources.

Every number drawn is a function of the seed, its purpose and an index, so that a resumed run needs
no saved position.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

SourceDraws = tuple[Int64[Tensor, " _"], int]
"""The training rows of one source, and how many draws of an epoch go to them, each as often."""


class BatchSampler:
    """The rows of every batch: shuffled epochs, one after the other."""

    def __init__(
        self,
        rows: Int64[Tensor, " n"],
        batch_size: int,
        seed: int,
        *,
        draws: Sequence[SourceDraws] = (),
    ):
        """Draw every row once per epoch, or, with `draws` of the same rows, by sources."""
        self._rows = rows
        self._draws = draws
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self._order = rows

    def batch(self, step: int) -> Int64[Tensor, " b"]:
        """Return the rows of optimizer step `step`, counted from 0."""
        position, wanted = step * self._batch_size, self._batch_size
        slices = []
        while wanted:
            epoch, offset = divmod(position, len(self._rows))
            slices.append(self._epoch_order(epoch)[offset : offset + wanted])
            position, wanted = position + len(slices[-1]), wanted - len(slices[-1])
        return torch.cat(slices)

    def _epoch_order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = seeded_generator(self._seed, "epoch", epoch)
            drawn = self._drawn_rows(epoch)
            self._order = drawn[torch.randperm(len(drawn), generator=generator)]
            self._epoch = epoch
        return self._order

    def _drawn_rows(self, epoch: int) -> Tensor:
        """Each source is an endless stream of its own shuffled rows, cut into epochs of draws."""
        if not self._draws:
            return self._rows
        slices = []
        for source, (rows, count) in enumerate(self._draws):
            position, stop = epoch * count, (epoch + 1) * count
            while position < stop:
                turn, offset = divmod(position, len(rows))
                generator = seeded_generator(self._seed, f"source {source}", turn)
                order = rows[torch.randperm(len(rows), generator=generator)]
                slices.append(order[offset : offset + stop - position])
                position += len(slices[-1])
        return torch.cat(slices)


def seeded_generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """Return a CPU generator that depends on all three and on nothing else."""
    words = np.random.SeedSequence([seed, index, *purpose.encode()]).generate_state(2)
    return torch.Generator().manual_seed((int(words[0]) << 31) | (int(words[1]) >> 1))


def source_draws(rows: list[Tensor], weights: list[float]) -> tuple[SourceDraws, ...]:
    """Give each source draws in proportion to its rows times its weight, one or more.

    Rounding goes to the largest remainders, so that a share is off by less than one draw per epoch.
    """
    if len(set(weights)) == 1:
        return ()
    sources = [(own, weight) for own, weight in zip(rows, weights, strict=True) if len(own)]
    num_rows = sum(len(own) for own, _ in sources)
    total = sum(len(own) * weight for own, weight in sources)
    exact = [len(own) * weight / total * num_rows for own, weight in sources]
    counts = [max(1, int(value)) for value in exact]
    while sum(counts) != num_rows:
        step = 1 if sum(counts) < num_rows else -1
        gaps = [
            step * (value - count) if count + step >= 1 else -float("inf")
            for value, count in zip(exact, counts, strict=True)
        ]
        counts[gaps.index(max(gaps))] += step
    return tuple(zip((own for own, _ in sources), counts, strict=True))
