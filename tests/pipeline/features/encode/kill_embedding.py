"""Kill an embedding with SIGKILL again and again, and go on each time; prints what was seen.

    python -m tests.pipeline.features.encode.kill_embedding MANIFEST FOLDER TOWER KILLS SEED

Runs as a program of its own: it loads everything once and forks a fresh embedding for every round.
"""

import json
import math
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from tqdm import tqdm

from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.store.records import COMPLETE_MARK
from tests.tower import load


def commits(store: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in (store / "commits").glob("*.json")
    }


def embed_in_child(
    manifest: Path,
    store: Path,
    tower: str,
    kill_after_s: float | None,
    *,
    after_commit: bool = False,
) -> bool:
    """Embed in a forked process; return whether it was killed before it ended.

    It is killed after a time, counted from its next commit where that is waited for.
    """
    before, kill_at = commits(store).keys(), math.inf
    given_up_at = time.monotonic() + 300  # a fork that hangs is a failure, not a test without end
    child = os.fork()
    if child == 0:
        with Path(os.devnull).open("w") as silence:
            os.dup2(silence.fileno(), 2)
        embed_dataset(EmbedConfig(manifest=manifest, store=store, encoder=tower))
        os._exit(0)
    if kill_after_s is not None and not after_commit:
        kill_at = time.monotonic() + kill_after_s
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if after_commit and commits(store).keys() != before:
            after_commit, kill_at = False, time.monotonic() + kill_after_s
        if time.monotonic() >= kill_at:
            os.kill(child, signal.SIGKILL)
        assert time.monotonic() < given_up_at
        time.sleep(0.004)
    assert os.waitstatus_to_exitcode(ended[1]) in (0, -signal.SIGKILL)
    return os.WIFSIGNALED(ended[1])


def main(manifest: Path, folder: Path, tower: str, kills: int, seed: int) -> None:
    """Kill `kills` embeddings at random moments; a store that is complete makes room for a new."""
    torch.set_num_threads(1)
    # tqdm's own lock is shared with forks: a kill while one holds it would hang all that follow.
    tqdm.set_lock(threading.RLock())
    load(tower)  # so that transformers is imported once and not in every round
    numbers = random.Random(seed)
    started = time.monotonic()
    embed_in_child(manifest, folder / "reference.zarr", tower, None)
    longest = time.monotonic() - started
    killed, rewritten, stores, rounds = 0, 0, 0, 0
    with_commits = 0
    while killed < kills:
        store = folder / f"killed-{stores}.zarr"
        before = commits(store)
        with_commits += bool(before)
        # Any moment; and every other time one soon after a commit, which short jobs seldom meet.
        rounds += 1
        if rounds % 2:
            # One that continues takes less than `longest`, and is to be killed before its end too.
            moment = numbers.uniform(0, longest if not before else 0.7 * longest)
            killed += embed_in_child(manifest, store, tower, moment)
        else:
            soon = numbers.uniform(0, 0.1 * longest)
            killed += embed_in_child(manifest, store, tower, soon, after_commit=True)
        after = commits(store)
        rewritten += sum(after[name] != record for name, record in before.items())
        if (store / COMPLETE_MARK).exists():
            stores += 1
    last = folder / f"killed-{stores}.zarr"
    if not last.exists() or not (last / COMPLETE_MARK).exists():
        before = commits(last)
        embed_in_child(manifest, last, tower, None)
        rewritten += sum(commits(last)[name] != record for name, record in before.items())
        stores += 1
    sys.stdout.write(
        json.dumps(
            {
                "killed": killed,
                "went_on_with_commits": with_commits,
                "rewritten": rewritten,
                "stores": stores,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
