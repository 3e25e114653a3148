"""Does a second process help? Training windows a second of two gloo processes against one.

    python -m tests.bench.ranks_speed

One thread a process, the same effective batch, real `vla-train` under torchrun, on a store of
random features; first a process with one thread, then one with two, then two of one each. Prints
windows a second after the first logged stretch, and the ratio of two processes to one (bar: 1.5
where the machine has two cores to give).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.pipeline.tiny import complete_store

LENGTHS: Final = (150,) * 14
BATCH: Final = 64
STEPS: Final = {"proj96": 12, "demo": 60}  # of which a third is logged at a time


def windows_per_s(store: Path, run: Path, preset: str, *, processes: int, threads: int) -> float:
    """Train, and return the median rate of the stretches after the first."""
    settings = {
        "batch_size": BATCH,
        "gradient_accumulation_steps": processes,
        "steps": STEPS[preset],
        "optimizer.warmup_steps": 1,
        "log_every": STEPS[preset] // 3,
        "validate_every": STEPS[preset],
        "checkpoint_every": STEPS[preset],
        "agent.readers": "{pooled={}}",
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launch, "--no-python", sys.executable, "-c"]
    train = "from cli.train import main; main()"
    subprocess.run(
        [*command, train, str(store), "--preset", preset, "--out", str(run), *words],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    rates = [line["steps_per_s"] for line in lines if "steps_per_s" in line]
    return BATCH * statistics.median(rates[1:])


def main() -> None:
    """Print both presets' rates and ratios."""
    with tempfile.TemporaryDirectory() as folder:
        store = complete_store(Path(folder) / "noise.zarr", LENGTHS).path
        for preset in STEPS:
            rates = {
                (processes, threads): windows_per_s(
                    store,
                    Path(folder) / f"{preset}-{processes}-{threads}",
                    preset,
                    processes=processes,
                    threads=threads,
                )
                for processes, threads in ((1, 1), (1, 2), (2, 1))
            }
            one, wide, two = rates.values()
            print(
                f"{preset}, batch {BATCH}: one process {one:.1f} windows/s (with two threads "
                f"{wide:.1f}), two processes {two:.1f}: {two / one:.2f} x",
                flush=True,
            )


if __name__ == "__main__":
    main()
