"""One of the processes that stream a store: `torchrun -m ...stream_ranks STORE RUN STEPS`.

Writes to RUN/rank.npz what it saw in some steps, and the weights of a training as RUN/run.json
describes it: whole, and stopped and gone on with.
"""

import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from pipeline.features.store.feature_store import FeatureStore
from pipeline.training.config import with_settings
from pipeline.training.data.streaming import StreamedWindowData
from pipeline.training.distributed import joined_ranks
from pipeline.training.presets import debug
from pipeline.training.run.folder import read_run
from pipeline.training.trainer import Trainer

MEMORY = 60_000_000
SETTINGS = ["micro_batches=2", "heldout_share=0.2", f"memory={MEMORY}"]
TRAINED = 8  # steps
CONFIG = with_settings(debug(), SETTINGS)


def main(store: Path, run: Path, num_steps: int) -> None:
    """Write this process's windows of some steps, what it knows of all, and its weights."""
    torch.set_num_threads(1)
    with joined_ranks(torch.device("cpu")) as (ranks, device):
        opened = FeatureStore.open(store)
        data = StreamedWindowData(opened, config=CONFIG, memory=MEMORY, ranks=ranks)
        with closing(data):
            batches = data.batches(CONFIG, ranks)
            drawn = [part for step in range(num_steps) for part in batches.parts(step)]
            whole, first, second = (Trainer(run, read_run(run), data, device, ranks) for _ in "123")
            for _ in range(TRAINED):
                whole.advance()
            for _ in range(TRAINED // 2):
                first.advance()
            if ranks.is_primary:
                first.save({})
            ranks.wait()
            second.restore()
            while second.step < TRAINED:
                second.advance()
            np.savez(
                run / f"{ranks.rank}.npz",
                current=torch.cat([part.state[:, -1, 0] for part in drawn]).long(),
                features=torch.cat([part.features[:, -1] for part in drawn]),
                mean=data.statistics().feature_mean,
                std=data.statistics().feature_std,
                whole=weights(whole),
                resumed=weights(second),
                unfinished=weights(first),
            )


def weights(trainer: Trainer) -> np.ndarray:
    """Return all weights by name, and then their averages."""
    held = [trainer.agent.state_dict(), trainer.average.averaged]
    return torch.cat([part[name].flatten() for part in held for name in sorted(part)]).numpy()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
