"""Kill a training with SIGKILL again and again, and go on each time; prints what was seen.

    python -m tests.pipeline.training.run.kill_training FOLDER KILLS SEED STORE [STORE...]

Runs as a program of its own: it loads everything once and forks a fresh training for every round.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from pipeline.training.config import with_settings
from pipeline.training.presets import debug
from pipeline.training.session import train

SETTINGS = ["steps=40", "validate_every=5", "checkpoint_every=10"]


def train_in_child(stores: list[Path], run: Path, kill_after_s: float | None) -> bool:
    """Train in a forked process; return whether it was killed before it ended."""
    child = os.fork()
    if child == 0:
        with Path(os.devnull).open("w") as silence:
            os.dup2(silence.fileno(), 2)
        train(stores, run, with_settings(debug(), SETTINGS), resume=True)
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def main(folder: Path, kills: int, seed: int, stores: list[Path]) -> None:
    """Kill `kills` trainings at random moments; a run that is done makes room for a new one."""
    torch.set_num_threads(1)
    numbers = random.Random(seed)
    started = time.monotonic()
    train_in_child(stores, folder / "reference", None)
    longest = time.monotonic() - started
    killed = runs = resumed = 0
    while True:
        run = folder / f"killed-{runs}"
        resumed += any(run.glob("checkpoints/step_*"))
        moment = numbers.uniform(0, 0.9 * longest) if killed < kills else None
        if train_in_child(stores, run, moment):
            killed += 1
            continue
        runs += 1
        if killed == kills:
            break
    sys.stdout.write(json.dumps({"killed": killed, "resumed": resumed, "runs": runs}))


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        [Path(store) for store in sys.argv[4:]],
    )
