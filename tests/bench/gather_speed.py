"""Does reading keep up? Windows a second from the disk against what the design's head consumes.

    python -m tests.bench.gather_speed [--steps 400000] [--threads 2] [--folder FOLDER]

Writes a sharded store of random features below FOLDER (three views, 4.6 kB per step) and draws
shuffled batches of 64 windows from it in a process of its own, with nothing else to do: first after
the system has dropped the store's pages (posix_fadvise; caches below the system, such as a
hypervisor's, are not dropped), then the same batches again. For comparison, torch indexes the same
features in memory. Then training steps are taken with the head of `proj96` on the same batches.
Prints the windows a second of each and their ratio to the head's (bar: 3), and by how much drawing
raised the process's peak resident memory.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
import torch

from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import mark_complete
from pipeline.features.store.start_frames import MAX_STARTS
from pipeline.features.store.units import SHARD_ROWS
from pipeline.training.config import with_settings
from pipeline.training.data.batches import Batches
from pipeline.training.data.windows import WindowData
from pipeline.training.distributed import Ranks
from pipeline.training.presets import proj96
from tests.bench.train_speed import seconds_a_step, trainer_of
from tests.pipeline.tiny import create_store, tiny_environment, tiny_start_frames

EPISODE_STEPS: Final = 250
BATCH: Final = 64
DRAWN_STEPS: Final = 600
TRAINED_STEPS: Final = 4
MIN_RATIO: Final = 3
FEATURES: Final = ("pooled",)
CONFIG: Final = with_settings(proj96(), [f"batch_size={BATCH}", "validation_share=0.05"])


def write_store(path: Path, num_steps: int) -> None:
    """Write a complete store of shards; all units hold the same numbers."""
    lengths = (EPISODE_STEPS,) * (num_steps // EPISODE_STEPS)
    store = create_store(path, lengths, rows_per_unit=SHARD_ROWS)
    numbers = np.random.default_rng(0)
    drawn = numbers.normal(size=(SHARD_ROWS, store.attributes.num_slots, 768))
    drawn = drawn.astype(np.float16)
    hashes = np.arange(drawn[..., 0].size, dtype=np.uint64).reshape(drawn.shape[:2])
    for unit in range(store.num_units):
        start, stop = store.unit_rows(unit)
        held = slice(stop - start)
        features = {"pooled": drawn[held]}
        store.write_unit(unit, features, hashes[held], {tiny_environment().digest()})
    store.write_start_frames(tiny_start_frames(min(len(lengths), MAX_STARTS)))
    mark_complete(store)


def drop_pages(folder: Path) -> None:
    """Ask the system to forget the files' content."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_mb() -> float:
    """Return the largest memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 * 1.024


def windows_per_s(batches: Batches) -> float:
    """Draw batches, and return the rate."""
    started = time.perf_counter()
    for step in range(DRAWN_STEPS):
        for _ in batches.chunks(step):
            pass
    return DRAWN_STEPS * BATCH / (time.perf_counter() - started)


def read(path: Path) -> dict[str, float]:
    """Check the store, then draw from it cold and warm; return rates and memory."""
    before, started = peak_mb(), time.perf_counter()
    store = FeatureStore.open(path)
    data = WindowData(store, features=FEATURES, validation_share=CONFIG.validation_share)
    opened = time.perf_counter() - started
    drop_pages(path)
    cold, warm = (windows_per_s(Batches(data, CONFIG, Ranks())) for _ in range(2))
    return {"check_s": opened, "cold": cold, "warm": warm, "grown_mb": peak_mb() - before}


def index_per_s(path: Path) -> float:
    """Return the rate of torch's index into all features in memory."""
    features = torch.from_numpy(FeatureStore.open(path).read_features("pooled"))
    rows = torch.randint(1, len(features), (DRAWN_STEPS, BATCH, 1))
    started = time.perf_counter()
    for batch in rows:
        features[batch + torch.arange(-1, 1)].float()
    return DRAWN_STEPS * BATCH / (time.perf_counter() - started)


def consumed_per_s(path: Path, run: Path) -> float:
    """Return the windows a second that training takes, its batches read as above."""
    store = FeatureStore.open(path)
    data = WindowData(store, features=FEATURES, validation_share=CONFIG.validation_share)
    trainer = trainer_of(CONFIG, store, data, run)
    trainer.advance()  # picks kernels, wakes threads
    return BATCH / seconds_a_step(trainer, TRAINED_STEPS)


def main() -> None:
    """Print every figure and its bar."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--steps", type=int, default=400_000)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--folder", type=Path)
    arguments.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.read:
        sys.stdout.write(json.dumps(read(chosen.read)))
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        store = Path(folder) / "store.zarr"
        write_store(store, chosen.steps)
        megabytes = chosen.steps * 4608 / 1e6
        print(f"{chosen.steps:,} steps, {megabytes:,.0f} MB of features, {chosen.threads} threads")
        words = ["--threads", str(chosen.threads), "--read", str(store)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.gather_speed", *words],
            check=True,
            stdout=subprocess.PIPE,
        )
        held = json.loads(done.stdout)
        held["in memory"] = index_per_s(store)
        consumed = consumed_per_s(store, Path(folder) / "run")
    print(f"head of proj96, batch {BATCH}: {consumed:,.0f} windows/s")
    print(
        f"check of all units {held['check_s']:.1f} s ({megabytes / held['check_s']:,.0f} MB/s); "
        f"resident memory grew by {held['grown_mb']:,.0f} MB"
    )
    for pages in ("cold", "warm", "in memory"):
        ratio = held[pages] / consumed
        print(f"{pages}: {held[pages]:,.0f} windows/s, {ratio:,.0f} x (bar {MIN_RATIO})")


if __name__ == "__main__":
    main()
