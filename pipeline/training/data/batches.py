"""The batch of every step, and the reading ahead of the batches that follow.

A batch is a function of seed and step: any number of processes share the same ones, and a resumed
run needs no saved position.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final

from jaxtyping import Int64
from torch import Tensor

from pipeline.training.config import TrainConfig
from pipeline.training.data.sampling import BatchSampler, seeded_generator
from pipeline.training.data.windows import WindowData, Windows
from pipeline.training.distributed import Ranks

BATCHES_AHEAD: Final = 2  # announced to the system while one is trained on

Part = tuple[Int64[Tensor, " b"], Int64[Tensor, "b v"] | None]


class Batches:
    """The parts of each batch that are this process's own."""

    def __init__(self, data: WindowData, config: TrainConfig, ranks: Ranks):
        """Read nothing yet.

        Args:
            data: of the run.
            config: of the run.
            ranks: this process among those that share every batch.
        """
        self._data, self._config, self._ranks = data, config, ranks
        self._sampler = BatchSampler(
            data.train_rows, config.batch_size, config.seed, draws=data.draws
        )
        self._next_step = 0
        """That the first of the announced batches is of."""
        self._announced: deque[list[Part]] = deque()

    def parts(self, step: int) -> Iterator[Windows]:
        """Give this process's parts of the batch of optimizer step `step`, counted from 0.

        Raises:
            StoreError: a store was replaced or written since the training began.
        """
        if step != self._next_step:
            self._announced.clear()
        while len(self._announced) <= BATCHES_AHEAD:
            self._announced.append(self._announce(step + len(self._announced)))
        self._next_step = step + 1
        horizon = self._config.agent.head.pred_horizon
        for rows, variants in self._announced.popleft():
            yield self._data.gather(
                rows,
                obs_horizon=self._config.agent.obs_horizon,
                pred_horizon=horizon,
                variants=variants,
            )

    def _announce(self, step: int) -> list[Part]:
        """Draw this process's windows of a step, and have the system begin to read them."""
        config, rows = self._config, self._sampler.batch(step)
        generator = seeded_generator(config.seed, "variants", step)
        variants = self._data.draw_variants(len(rows), generator)
        size = config.batch_size // config.gradient_accumulation_steps
        parts: list[Part] = []
        for number in self._ranks.share(config.gradient_accumulation_steps):
            own = slice(number * size, (number + 1) * size)
            parts.append((rows[own], None if variants is None else variants[own]))
            self._data.announce(*parts[-1], obs_horizon=config.agent.obs_horizon)
        return parts
