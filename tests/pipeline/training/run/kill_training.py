"""Kill a training with SIGKILL again and again, and go on each time; prints what was seen.

    python -m tests.pipeline.training.run.kill_training FOLDER KILLS SEED STORE [STORE...]

Runs as a program of its own: it loads everything once and forks a fresh training for every round.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch
import torch._dynamo  # the optimizers import it, for more than a second in every fork
from tqdm import tqdm

from pipeline.training.config import with_settings
from pipeline.training.presets import debug
from pipeline.training.session import train

STEPS = 40
SETTINGS = [f"steps={STEPS}", "validate_every=5", "checkpoint_every=10"]


def has_logged(log: Path, before: bytes, lines: int) -> bool:
    """Whether a log has so many lines and is another one than before."""
    now = log.read_bytes() if log.exists() else b""
    return now != before and now.count(b"\n") >= lines


def train_in_child(stores: list[Path], run: Path, kill_at: int | None, delay_s: float = 0) -> bool:
    """Train in a forked process; return whether it was killed before it ended.

    It is killed some time after its log has so many lines, one per step.
    """
    log = run / "log.jsonl"
    before = log.read_bytes() if log.exists() else b""
    child = os.fork()
    if child == 0:
        with Path(os.devnull).open("w") as silence:
            os.dup2(silence.fileno(), 2)
        train(stores, run, with_settings(debug(), SETTINGS), resume=True)
        os._exit(0)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if kill_at is not None and has_logged(log, before, kill_at):
            time.sleep(delay_s)
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    assert os.waitstatus_to_exitcode(ended[1]) in (0, -signal.SIGKILL)
    return os.WIFSIGNALED(ended[1])


def main(folder: Path, kills: int, seed: int, stores: list[Path]) -> None:
    """Kill `kills` trainings at random steps; a run that is done makes room for a new one."""
    torch.set_num_threads(1)
    # tqdm's own lock is shared with forks: a kill while one holds it would hang all that follow.
    tqdm.set_lock(threading.RLock())
    numbers = random.Random(seed)
    started = time.monotonic()
    train_in_child(stores, folder / "reference", None)
    step_s = (time.monotonic() - started) / STEPS
    killed = runs = resumed = 0
    while True:
        run = folder / f"killed-{runs}"
        checkpoints = len(list(run.glob("checkpoints/step_*")))
        resumed += bool(checkpoints)
        kill_at = numbers.randrange(10 * checkpoints, STEPS) if killed < kills else None
        if train_in_child(stores, run, kill_at, numbers.uniform(0, 3 * step_s)):
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
