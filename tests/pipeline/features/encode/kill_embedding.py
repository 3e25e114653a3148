"""Kill an embedding with SIGKILL again and again, and go on each time; prints what was seen.

    python -m tests.pipeline.features.encode.kill_embedding MANIFEST FOLDER TOWER KILLS SEED

Runs as a program of its own: it loads everything once and forks a fresh embedding for every round.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.store.records import COMPLETE_MARK


def commits(store: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in (store / "commits").glob("*.json")
    }


def wait_for_commit(store: Path, timeout_s: float) -> None:
    """Return when a unit was committed, or when an embedding would have ended."""
    before, deadline = commits(store).keys(), time.monotonic() + timeout_s
    while commits(store).keys() == before and time.monotonic() < deadline:
        time.sleep(0.002)


def embed_in_child(
    manifest: Path,
    store: Path,
    tower: str,
    kill_after_s: float | None,
    commit_within_s: float | None = None,
) -> bool:
    """Embed in a forked process; return whether it was killed before it ended.

    It is killed after a time, counted from its next commit where that is waited for.
    """
    child = os.fork()
    if child == 0:
        with Path(os.devnull).open("w") as silence:
            os.dup2(silence.fileno(), 2)
        embed_dataset(EmbedConfig(manifest=manifest, store=store, encoder=tower))
        os._exit(0)
    if kill_after_s is not None:
        if commit_within_s is not None:
            wait_for_commit(store, commit_within_s)
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if kill_after_s is None:
        assert os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def main(manifest: Path, folder: Path, tower: str, kills: int, seed: int) -> None:
    """Kill `kills` embeddings at random moments; a store that is complete makes room for a new."""
    torch.set_num_threads(1)
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
            killed += embed_in_child(manifest, store, tower, numbers.uniform(0, longest))
        else:
            soon = numbers.uniform(0, 0.1 * longest)
            killed += embed_in_child(manifest, store, tower, soon, commit_within_s=longest)
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
