"""Fixtures of tests in several folders: a real S3 server, and a proxy that fails on demand."""

import pytest

from pipeline.storage.objects.requests import RETRY
from tests.object_server import failing_proxy, s3_server, use_server


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
def impatient(monkeypatch):
    """Give up soon where nothing answers."""
    monkeypatch.setitem(RETRY, "max_retries", 1)
