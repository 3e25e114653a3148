"""Does reading keep up? Windows a second from the disk against what the design's head consumes.

    python -m tests.bench.stream_speed [--steps 400000] [--memory 700MB] [--threads 2]
        [--folder FOLDER]

Writes a sharded store of random features below FOLDER (three views, 4.6 kB a step), more than the
memory holds, and reads an epoch of it in a process of its own, batch 64, with nothing else to do:
once after the system has dropped the store's pages (posix_fadvise; what lies below the system, a
hypervisor's cache for one, nobody drops), once more as the first time has left them. Then it takes
training steps with the head of `proj96` on the same batches. Prints the windows a second of both
and their ratio (bar: 3), and by how much reading raised the process's peak resident memory, against
the setting. Units are checked against their commit records all the time, as in every training.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np
import torch

from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.units import SHARD_ROWS
from pipeline.training.config import parse_memory, with_settings
from pipeline.training.data.streaming import StreamedWindowData
from pipeline.training.distributed import Ranks
from pipeline.training.presets import proj96
from tests.bench.train_speed import seconds_a_step, trainer_of
from tests.pipeline.tiny import create_store, tiny_engine

EPISODE_STEPS: Final = 250
BATCH: Final = 64
TRAINED_STEPS: Final = 6
MIN_RATIO: Final = 3


def write_store(path: Path, num_steps: int) -> None:
    """Write a complete store of shards; all units hold the same numbers."""
    lengths = (EPISODE_STEPS,) * (num_steps // EPISODE_STEPS)
    store = create_store(path, lengths, rows_per_unit=SHARD_ROWS)
    numbers = np.random.default_rng(0)
    features = numbers.normal(size=(SHARD_ROWS, store.attributes.num_slots, 768))
    features = features.astype(np.float16)
    hashes = np.arange(features[..., 0].size, dtype=np.uint64).reshape(features.shape[:2])
    for unit in range(store.num_units):
        start, stop = store.unit_rows(unit)
        held = slice(stop - start)
        store.write_unit(unit, features[held], hashes[held], {tiny_engine().digest()})
    store.mark_complete()


def drop_pages(folder: Path) -> None:
    """Ask the system to forget the files' content."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_mb() -> float:
    """Return the memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def read(path: Path, memory: int) -> dict[str, float]:
    """Read the store through, then one epoch of windows; return rates and memory."""
    before = resident_mb()
    config = with_settings(proj96(), [f"batch_size={BATCH}", "heldout_share=0.05"])
    started = time.perf_counter()
    with closing(StreamedWindowData(FeatureStore.open(path), config=config, memory=memory)) as data:
        opened = time.perf_counter()
        batches = data.batches(config, Ranks())
        steps = len(data.train_rows) // BATCH
        for step in range(steps):
            for _ in batches.parts(step):
                pass
        ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 * 1.024
    return {
        "first_pass_s": opened - started,
        "windows_per_s": steps * BATCH / (ended - opened),
        "grown_mb": peak - before,
    }


def consumed_per_s(path: Path, memory: int, run: Path) -> float:
    """Return the windows a second that training takes, its batches read as above."""
    config = with_settings(proj96(), [f"batch_size={BATCH}", f"memory={memory}"])
    store = FeatureStore.open(path)
    with closing(StreamedWindowData(store, config=config, memory=memory)) as data:
        trainer = trainer_of(config, store, data, run)
        trainer.advance()  # picks kernels, wakes threads, waits for the first group
        return BATCH / seconds_a_step(trainer, TRAINED_STEPS)


def main() -> None:
    """Print every figure and its bar."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--steps", type=int, default=400_000)
    arguments.add_argument("--memory", default="700MB")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--folder", type=Path)
    arguments.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    memory = parse_memory(chosen.memory)
    if chosen.read:
        sys.stdout.write(json.dumps(read(chosen.read, memory)))
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        store = Path(folder) / "store.zarr"
        write_store(store, chosen.steps)
        print(
            f"{chosen.steps:,} steps, {chosen.steps * 4608 / 1e6:,.0f} MB of features, memory "
            f"{memory / 1e6:,.0f} MB, {chosen.threads} threads"
        )
        drop_pages(store)
        words = ["--memory", chosen.memory, "--threads", str(chosen.threads), "--read", str(store)]
        found = {}
        for pages in ("dropped", "as left"):
            done = subprocess.run(
                [sys.executable, "-m", "tests.bench.stream_speed", *words],
                check=True,
                stdout=subprocess.PIPE,
            )
            found[pages] = json.loads(done.stdout)
        consumed = consumed_per_s(store, memory, Path(folder) / "run")
    print(f"head of proj96, batch {BATCH}: {consumed:,.0f} windows/s")
    for pages, held in found.items():
        print(
            f"pages {pages}: first pass {held['first_pass_s']:.1f} s, {held['windows_per_s']:,.0f} "
            f"windows/s, {held['windows_per_s'] / consumed:,.0f} x (bar {MIN_RATIO}); resident "
            f"memory grew by {held['grown_mb']:,.0f} MB (setting {memory / 1e6:,.0f})"
        )


if __name__ == "__main__":
    main()
