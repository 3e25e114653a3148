"""Checked shapes in all tests, and fixtures of several folders: a real S3 server, and its proxy."""

import gc
import os
from pathlib import Path

import jaxtyping
import pytest
from huggingface_hub import constants

from pipeline.storage.objects.requests import RETRY
from tests.forked import fork_simulators
from tests.object_server import failing_proxy, s3_server, use_server

ROOT = Path(__file__).parents[1]
LONGEST = {"test_siglip2.py", "test_libero.py", "test_ray.py", "test_checksums.py"}


# Now, before the tests' folders import any of it. mypy checks the other modules; checking them here
# too takes a fifth of all tests' time.
ANNOTATED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "pipeline").rglob("*.py"))
    if "jaxtyping" in path.read_text()
]
jaxtyping.install_import_hook(["policy", *ANNOTATED], "beartype.beartype")


def pytest_configure(config: pytest.Config) -> None:
    """Spare waits."""
    # A kill loses nothing that was written, and no test loses power. Commands in processes of
    # their own do wait for the disk.
    os.fsync = lambda _descriptor: None
    fork_simulators(for_workers=bool(config.getoption("numprocesses", None)))


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Import the tests without looking for garbage, and never look at what they import."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that several processes end together."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def _no_real_time():
    yield
    assert os.sched_getscheduler(0) not in {os.SCHED_FIFO, os.SCHED_RR}, "call leave_real_time"


@pytest.fixture(scope="session")
def server():
    with s3_server() as port:
        yield port


@pytest.fixture
def proxy(server, monkeypatch):
    with failing_proxy(server) as proxy:
        use_server(monkeypatch, proxy.url)
        yield proxy


@pytest.fixture
def no_hub(monkeypatch):
    """Have the Hugging Face hub answer nothing, at once; its client reads this at its import."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def unchecked(monkeypatch):
    """Check no shapes, where many steps would check the same ones."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def impatient(monkeypatch):
    """Give up soon where nothing answers."""
    monkeypatch.setitem(RETRY, "max_retries", 1)
