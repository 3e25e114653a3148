"""The batch of every step, and the reading ahead of the batches that follow.

A batch is a function of seed and step: any number of processes share the same ones, and a resumed
run needs no saved position.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final

import torch
from jaxtyping import Int64
from torch import Tensor

from pipeline.training.config import TrainConfig
from pipeline.training.data.sampling import BatchSampler, seeded_generator
from pipeline.training.data.windows import WindowData, Windows
from pipeline.training.distributed import Ranks

BATCHES_AHEAD: Final = 2  # announced to the system while one is trained on

Chunk = tuple[Int64[Tensor, " b"], Int64[Tensor, "b v"] | None]


class Batches:
    """The chunks of each batch that this process trains on."""

    def __init__(self, data: WindowData, config: TrainConfig, ranks: Ranks):
        """Draw nothing yet; `ranks` is this process among those that share every batch."""
        self._data, self._config, self._ranks = data, config, ranks
        self._sampler = BatchSampler(
            data.train_rows, config.batch_size, config.seed, draws=data.draws
        )
        self._next_step = 0  # of the first of the announced batches
        self._announced: deque[list[Chunk]] = deque()

    def chunks(self, step: int) -> Iterator[Windows]:
        """Yield this process's chunks of the batch of a step (StoreError: a store was replaced)."""
        if step != self._next_step:
            self._announced.clear()
        while len(self._announced) <= BATCHES_AHEAD:
            self._announced.append(self._announce(step + len(self._announced)))
        self._next_step = step + 1
        agent = self._config.agent
        for rows, variants in self._announced.popleft():
            yield self._data.gather(
                rows,
                obs_horizon=agent.obs_horizon,
                pred_horizon=agent.head.pred_horizon,
                variants=variants,
            )

    def _announce(self, step: int) -> list[Chunk]:
        """Draw this process's windows of a step, and have the system begin to read them."""
        config, rows, variants = self._config, self._sampler.batch(step), None
        if self._data.num_variants:
            generator = seeded_generator(config.seed, "variants", step)
            shape = len(rows), self._data.spec.num_views
            variants = torch.randint(0, self._data.num_variants + 1, shape, generator=generator)
        size = config.batch_size // config.gradient_accumulation_steps
        chunks: list[Chunk] = []
        for number in self._ranks.share(config.gradient_accumulation_steps):
            own = slice(number * size, (number + 1) * size)
            chunks.append((rows[own], None if variants is None else variants[own]))
            self._data.announce(*chunks[-1], obs_horizon=config.agent.obs_horizon)
        return chunks
