"""The sockets of a policy server, and the one thread that its policy runs in.

The server sends its metadata first. Each binary message is then an observation, and the reply has
`actions` and `server_timing`; the reply to an invalid message is one line of text, after which the
connection closes. A new connection begins a new episode; openpi-client's `reset` sends nothing.

One thread runs the policy, so that the encoder computes where its probe was checked. When it has
answered, it answers all requests that are waiting by then together; it never waits for more. The
size of messages is bounded, each client may have one waiting, and web pages are refused, because a
browser lets any page connect to this machine's ports.

Source: Physical-Intelligence/openpi, src/openpi/serving/websocket_policy_server.py, and
openpi-client 0.1.2 on PyPI, websocket_client_policy.py, for the facts of the protocol.
Differs from the source: messages are bounded, errors are one line without a traceback.
"""

import asyncio
import logging
import signal
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from typing import Final

import numpy as np
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from pipeline.errors import ConfigError
from pipeline.rollout.serve.config import ServeConfig, is_authorized
from pipeline.rollout.serve.session import ServedPolicy, Session, Turn, answer_together
from pipeline.rollout.serve.wire import decode_message, encode_message
from policy.errors import VlaError

MIB: Final = 2**20  # bytes
CLOSE_TIMEOUT_S: Final = 2.0  # seconds to wait for a client's closing handshake
LATEST_ANSWERS: Final = 1000  # whose rate and latency are reported

logger = logging.getLogger(__name__)


def serve_until_signal(config: ServeConfig, announce: Callable[[str], None]) -> None:
    """Load a run and serve it until Ctrl-C or SIGTERM.

    `announce`, and errors: see `run_until_signal`, `ServedPolicy.load` and `PolicyServer.run`.
    """
    # Loaded in the thread that will run it: how torch splits its products is a setting per thread,
    # and decides the bits that the probe was checked for.
    with ThreadPoolExecutor(max_workers=1) as worker:
        policy = worker.submit(ServedPolicy.load, config).result()
        asyncio.run(run_until_signal(PolicyServer(policy, config, worker), announce))


async def run_until_signal(server: "PolicyServer", announce: Callable[[str], None]) -> None:
    """Run a server in this process's main thread until Ctrl-C or SIGTERM.

    `announce` takes a line when it listens, and one with its performance when it has ended.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await server.run(stop, lambda url: announce(f"serving {server.summary} at {url}"))
    if server.performance:
        announce(server.performance)


class PolicyServer:
    """Answers websocket clients, together those that are waiting at the same time."""

    def __init__(self, policy: ServedPolicy, config: ServeConfig, worker: ThreadPoolExecutor):
        """Serve a loaded policy; `worker`, of one thread, runs it."""
        self._policy = policy
        self._config = config
        self._worker = worker
        self._max_size = config.max_message_mib * MIB
        self._metadata = encode_message(policy.metadata() | {"max_message_bytes": self._max_size})
        self._waiting: deque[Turn] = deque()
        self._answered: deque[tuple[float, float]] = deque(maxlen=LATEST_ANSWERS)

    @property
    def summary(self) -> str:
        """Return what is served, in a few words."""
        description = self._policy.description
        encoder = description.data.encoder
        warning = "" if encoder.pretrained else ", NOT pretrained"
        return (
            f"{self._config.run} (step {self._policy.checkpoint_step}; views "
            f"{', '.join(description.spec.view_names)}; encoder {encoder.name}{warning})"
        )

    @property
    def performance(self) -> str:
        """Return rate, pauses included, and latency of the latest answers in one line, if any."""
        if not self._answered:
            return ""
        received, sent = np.array(self._answered).T
        median, slow = np.percentile(1e3 * (sent - received), [50, 99])
        rate = len(sent) / (sent.max() - received.min())
        return (
            f"latest {len(sent)} answers: {rate:.1f} per second, latency "
            f"p50 {median:.1f} ms, p99 {slow:.1f} ms"
        )

    async def run(self, stop: asyncio.Event, listening: Callable[[str], None]) -> None:
        """Listen until `stop` is set; clients then get the close code 1001 (going away).

        `listening` takes the address once clients can connect (ConfigError: it cannot be used).
        """
        # Strangers' broken handshakes are no defects of ours: the library would log tracebacks.
        silent = logging.getLogger(f"{__name__}.handshakes")
        silent.setLevel(logging.CRITICAL)
        host, port = self._config.host, self._config.port
        try:
            server = await listen(
                self._converse,
                host,
                port,
                process_request=self._admit,
                origins=[None],  # programs send no Origin, browsers always do
                compression=None,  # images gain nothing, and no message can grow
                max_size=self._max_size,
                max_queue=1,
                close_timeout=CLOSE_TIMEOUT_S,
                logger=silent,
            )
        except OSError as error:
            reason = str(error.strerror or error).rpartition(": ")[2]
            raise ConfigError(
                f"{host}:{port}: expected an address to listen on, found: {reason}; choose another "
                "--host or --port"
            ) from error
        async with server:
            name = f"[{host}]" if ":" in host else host
            listening(f"ws://{name}:{server.sockets[0].getsockname()[1]}")
            await stop.wait()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Respond to what is not a websocket's handshake, or not allowed to be one."""
        if request.path == "/healthz":
            return connection.respond(HTTPStatus.OK, f"OK\n{self.performance}\n")
        if not is_authorized(request.headers.get_all("Authorization"), self._config.token):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "expected Authorization: Api-Key\n")
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        session, client = Session(self._policy), connection.remote_address[0]
        try:
            await connection.send(self._metadata)
            async for message in connection:
                received = time.perf_counter()
                turn = Turn(session, decode_message(message))
                self._waiting.append(turn)
                self._worker.submit(self._answer_waiting)
                decision = await asyncio.wrap_future(turn.answered)
                await connection.send(encode_message(decision.reply()))
                self._answered.append((received, time.perf_counter()))
        except ConnectionClosed as closed:  # clients come and go, and some are killed
            if closed.sent is not None and closed.sent.code == CloseCode.MESSAGE_TOO_BIG:
                logger.warning(
                    "%s: a message of more than %d MiB was cut off; send smaller images, or "
                    "start with --set max_message_mib=N",
                    client,
                    self._config.max_message_mib,
                )
        except VlaError as error:
            line = " ".join(str(error).split())
            logger.warning("%s: %s", client, line)
            await _dismiss(connection, line, CloseCode.UNSUPPORTED_DATA)
        except Exception:  # a defect of ours must not end the others' connections
            logger.exception("%s: internal error while processing a message", client)
            line = "the server failed on this message; see its log"
            await _dismiss(connection, line, CloseCode.INTERNAL_ERROR)

    def _answer_waiting(self) -> None:
        """Answer what is waiting; there may be none where the call before has taken it."""
        turns = [self._waiting.popleft() for _ in range(len(self._waiting))]
        current = [turn for turn in turns if turn.answered.set_running_or_notify_cancel()]
        answer_together(self._policy, current)


async def _dismiss(connection: ServerConnection, line: str, code: CloseCode) -> None:
    """Send a client the reason and close its connection; it may be gone already."""
    with suppress(ConnectionClosed):
        await connection.send(f"error: {line}")
        await connection.close(code, "see the text before")
