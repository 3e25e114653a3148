"""Embeddings in processes of their own, to be killed, and what they leave in a store."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.features.encode.embed import EmbedConfig, EmbedReport, embed_dataset
from pipeline.features.identity.source import SOURCE_NOTE
from tests.pipeline.features.still_life import write_still_life
from tests.tower import tiny_tower

TIMEOUT_S = 600


def write_one_view(folder: Path, lengths: tuple[int, ...] = (500, 400, 130)) -> Path:
    """Write a dataset of five units, the last one short; a unit takes a tenth of a second."""
    manifest = write_still_life(folder, lengths, views=("top",))
    one_view = 'views = [{name = "top", key = "observations/images/top"}]'
    manifest.write_text(re.sub("^views = .*", one_view, manifest.read_text(), flags=re.MULTILINE))
    return manifest


def configure(manifest: Path, store: Path, **settings: object) -> EmbedConfig:
    return EmbedConfig(manifest=manifest, store=store, **({"encoder": tiny_tower()} | settings))


def embed(manifest: Path, store: Path, **settings: object) -> EmbedReport:
    return embed_dataset(configure(manifest, store, **settings))


def store_bytes(store: Path) -> dict[str, bytes]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and path.name != SOURCE_NOTE and ".partial" not in path.name
    }


def commits(store: Path) -> dict[str, tuple[int, int]]:
    """Which file every record is, and when it was written."""
    found = {}
    for path in (store / "commits").glob("*.json"):
        status = path.stat()
        found[path.name] = status.st_ino, status.st_mtime_ns
    return found


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes_with(word: bytes, *, in_their: str) -> set[int]:
    """Which processes have a word in a file of theirs below /proc."""
    found = set()
    for path in Path("/proc").glob(f"[0-9]*/{in_their}"):
        try:
            if word in path.read_bytes():
                found.add(int(path.parent.name))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
