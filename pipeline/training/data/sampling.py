"""Which windows a step trains on: shuffled epochs, of all rows alike or by weighted sources.

Knows row numbers and seeds; nothing about features. Every number drawn is a function of the seed,
its purpose and an index, so that a resumed run needs no saved position.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor


@dataclass(frozen=True)
class SourceDraws:
    """How often an epoch draws the training rows of one source."""

    rows: Int64[Tensor, " n"]
    """Its rows."""
    count: int
    """How many draws of an epoch are its own; they take its rows in turn, each as often."""


class BatchSampler:
    """Which rows make up the batch of a step: shuffled epochs, one after the other.

    A pure function of seed and step, so that a resumed run needs no saved position.
    """

    def __init__(
        self,
        rows: Int64[Tensor, " n"],
        batch_size: int,
        seed: int,
        *,
        draws: Sequence[SourceDraws] = (),
    ):
        """Draw every row once an epoch, or by sources.

        Args:
            rows: the rows to train on.
            batch_size: rows a step.
            seed: decides the order.
            draws: the same rows by sources, and how many of each an epoch of `len(rows)` draws;
                empty draws every row once.
        """
        self._rows = rows
        self._draws = draws
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self._order = rows

    def batch(self, step: int) -> Int64[Tensor, " b"]:
        """Return the rows of optimizer step `step`, counted from 0."""
        position, wanted = step * self._batch_size, self._batch_size
        parts = []
        while wanted:
            epoch, offset = divmod(position, len(self._rows))
            part = self._epoch_order(epoch)[offset : offset + wanted]
            parts.append(part)
            position, wanted = position + len(part), wanted - len(part)
        return torch.cat(parts)

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
        parts = []
        for source, draws in enumerate(self._draws):
            position, stop = epoch * draws.count, (epoch + 1) * draws.count
            while position < stop:
                turn, offset = divmod(position, len(draws.rows))
                generator = seeded_generator(self._seed, f"source {source}", turn)
                order = draws.rows[torch.randperm(len(draws.rows), generator=generator)]
                parts.append(order[offset : offset + stop - position])
                position += len(parts[-1])
        return torch.cat(parts)


def seeded_generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """Return a CPU generator that depends on all three and on nothing else."""
    words = np.random.SeedSequence([seed, index, *purpose.encode()]).generate_state(2)
    return torch.Generator().manual_seed((int(words[0]) << 31) | (int(words[1]) >> 1))


def source_draws(rows: list[Tensor], weights: list[float]) -> tuple[SourceDraws, ...]:
    """Share an epoch's draws out: to each source in proportion to its rows times its weight.

    Every source with training rows gets one draw or more; what rounding leaves over goes to the
    largest remainders, so that a share is off by less than one draw an epoch, or a small source's
    one draw.
    """
    if len(set(weights)) == 1:
        return ()
    sources = [(part, weight) for part, weight in zip(rows, weights, strict=True) if len(part)]
    num_rows = sum(len(part) for part, _ in sources)
    total = sum(len(part) * weight for part, weight in sources)
    exact = [len(part) * weight / total * num_rows for part, weight in sources]
    counts = [max(1, int(value)) for value in exact]
    while sum(counts) != num_rows:
        step = 1 if sum(counts) < num_rows else -1
        gaps = [
            step * (value - count) if count + step >= 1 else -float("inf")
            for value, count in zip(exact, counts, strict=True)
        ]
        counts[gaps.index(max(gaps))] += step
    return tuple(
        SourceDraws(rows=part, count=count)
        for (part, _), count in zip(sources, counts, strict=True)
    )
