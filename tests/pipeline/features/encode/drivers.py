"""Embeddings in processes of their own, to be killed, and what they leave in a store."""

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from pipeline.features.encode.embed import EmbedConfig, EmbedReport, embed_dataset
from pipeline.features.encode.executor_choice import ExecutorConfig
from pipeline.features.identity.source import SOURCE_NOTE
from tests.pipeline.features.still_life import write_still_life
from tests.tower import tiny_tower

TIMEOUT_S = 120
MARK = "VLA_TEST_DRIVER"


def write_one_view(folder: Path, lengths: tuple[int, ...] = (500, 400, 300)) -> Path:
    """Write a dataset of five units; a unit takes a few tenths of a second."""
    manifest = write_still_life(folder, lengths)
    one_view = 'views = [{name = "top", key = "observations/images/top"}]'
    manifest.write_text(re.sub("^views = .*", one_view, manifest.read_text(), flags=re.MULTILINE))
    return manifest


def configure(manifest: Path, store: Path, **executor: object) -> EmbedConfig:
    part = executor.pop("part", None)
    return EmbedConfig(
        manifest=manifest,
        store=store,
        backbone=tiny_tower(),
        executor=ExecutorConfig.model_validate(executor),
        part=part,
    )


def embed(manifest: Path, store: Path, **executor: object) -> EmbedReport:
    return embed_dataset(configure(manifest, store, **executor))


def start_driver(config: EmbedConfig) -> BaseProcess:
    """Embed in a process that shares nothing with this one, but has imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pipeline.features.encode.process_pool", "pipeline.features.encode.embed"]
    )
    driver = context.Process(target=_embed_marked, args=(config,))
    driver.start()
    return driver


def _embed_marked(config: EmbedConfig) -> None:
    os.environ[MARK] = str(config.store)  # its workers inherit it
    embed_dataset(config)


def workers_of(store: Path) -> set[int]:
    """Which processes encode for a driver that `start_driver` started."""
    return processes_with(f"{MARK}={store}".encode(), in_their="environ")


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
        time.sleep(0.002)


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
