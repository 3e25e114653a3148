"""A real S3-compatible server on loopback, and a real proxy in front of it that fails on demand."""

import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

import pytest

from pipeline.storage.objects.requests import RETRY, open_bucket

BUCKET = "bucket"
KEY_ID, SECRET = "AKIANOTTOBESHOWN", "notToBeShownEither"
HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "server", "date"}
SERVER = """
import sys
from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server
app, port = create_backend_app("s3"), int(sys.argv[1])
server = make_server("127.0.0.1", port, app, threaded=True, request_handler=MotoRequestHandler)
server.serve_forever()
"""
"""moto's server for S3 alone: `moto.server` takes twice the time per request."""

DENIED = f"""<?xml version="1.0"?><Error><Code>SignatureDoesNotMatch</Code>
<AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId><StringToSign>{SECRET}</StringToSign></Error>"""


def use_server(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Lead obstore to a server as a user does, by the environment; wait little between tries."""
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    open_bucket.cache_clear()  # of another test's server
    monkeypatch.setitem(RETRY["backoff"], "init_backoff", timedelta(milliseconds=5))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def s3_server() -> Iterator[int]:
    """Run moto's server in a process of its own, with one empty bucket; give its port."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                assert ask(port, "PUT", f"/{BUCKET}")[0] == 200
                break
            except ConnectionRefusedError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Send one request and return status and body."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class FailingProxy:
    """Hands requests on to a server, and fails some of them in every way a network can.

    A failure is, drawn by seed: an answer 503 or 500, a connection that is closed before the
    request is handed on, one that is closed after (the answer gets lost), or one that is closed
    in the middle of the answer's body.
    """

    KINDS = ("503", "500", "drop", "lose", "cut")

    def __init__(self, target: int, *, share: float = 0.0, seed: int = 0):
        """Listen on a free port; the proxy serves until `close`."""
        self.share = share
        """Of the requests that fail."""
        self.dies_at: Callable[[str, str], bool] = lambda _method, _path: False
        """Method and path of the request from which on nothing is answered any more."""
        self.fails_first_time = ""
        """Kind of failure of the first request of each method for each object."""
        self.denies = False
        """Whether every answer is a refusal that quotes what was signed."""
        self.is_dead = False
        self.seen: list[tuple[str, str]] = []
        """Method and path of every request that was handed on."""
        self.failed: list[str] = []
        """Kind of every failure."""
        self._asked: set[tuple[str, str]] = set()
        self._numbers, self._lock = random.Random(seed), Lock()
        self._target = target
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _draw(self, method: str, path: str) -> str:
        dies = self.dies_at(method, path)  # which may wait while others are answered
        with self._lock:
            self.is_dead = self.is_dead or dies
            if self.is_dead:
                return "drop"
            kind = self._numbers.choice(self.KINDS) if self._numbers.random() < self.share else ""
            name = path.partition("?")[0].removeprefix(f"/{BUCKET}/")
            if (method, name) not in self._asked:
                self._asked.add((method, name))
                kind = kind or self.fails_first_time
            if kind:
                self.failed.append(kind)
            if kind not in ("503", "500", "drop"):
                self.seen.append((method, name))
            return kind

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 5
            disable_nagle_algorithm = True
            wbufsize = -1  # headers and body in one packet

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                kind = proxy._draw(self.command, self.path)
                if kind == "drop":
                    self.close_connection = True
                elif kind:
                    self.fail(kind, body)
                elif proxy.denies:
                    self.reply(403, DENIED.encode())
                else:
                    self.reply(*self.hand_on(body))

            def fail(self, kind: str, body: bytes) -> None:
                if kind in ("503", "500"):
                    self.reply(int(kind), b"")
                    return
                self.close_connection = True
                status, content, headers, size = self.hand_on(body)
                if kind == "cut":
                    self.reply(status, content[: len(content) // 2], headers, size)

            def hand_on(self, body: bytes) -> tuple[int, bytes, list[tuple[str, str]], str]:
                connection = HTTPConnection("127.0.0.1", proxy._target, timeout=30)
                try:
                    connection.request(self.command, self.path, body, dict(self.headers.items()))
                    answer = connection.getresponse()
                    content, headers = answer.read(), answer.getheaders()
                finally:
                    connection.close()
                size = answer.getheader("content-length") or str(len(content))
                kept = [pair for pair in headers if pair[0].lower() not in HOP_BY_HOP]
                return answer.status, content, kept, size

            def reply(
                self,
                status: int,
                content: bytes,
                headers: list[tuple[str, str]] | None = None,
                size: str | None = None,
            ) -> None:
                with suppress(ConnectionError):
                    self.send_response_only(status)
                    for name, value in headers or ():
                        self.send_header(name, value)
                    if status != 204:
                        self.send_header("content-length", size or str(len(content)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(content)
                    self.wfile.flush()

            def log_message(self, *words: object) -> None:
                """Say nothing."""

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

        return Handler


@contextmanager
def failing_proxy(target: int, *, share: float = 0.0, seed: int = 0) -> Iterator[FailingProxy]:
    """Run a proxy in front of a server."""
    proxy = FailingProxy(target, share=share, seed=seed)
    try:
        yield proxy
    finally:
        proxy.close()
