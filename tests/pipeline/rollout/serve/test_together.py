"""Requests of several clients at once: what they share, and what they do not."""

import re
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from websockets.sync.client import ClientConnection

from tests.pipeline.rollout.pixel_encoder import BROKEN_PIXEL, PixelEncoder
from tests.pipeline.rollout.serve.served import (
    assert_acts,
    assert_still_serves,
    greeted,
    observation,
    reset,
    robot,
    served_policy,
    serving,
)


class GatedEncoder(PixelEncoder):
    """Encodes where its gate is open, and counts its passes."""

    def __init__(self):
        super().__init__()
        self.gate, self.reached = threading.Event(), threading.Event()
        self.passes = 0

    def _forward(self, images):
        self.reached.set()
        assert self.gate.wait(timeout=30)
        self.passes += 1
        return super()._forward(images)


def actions(answer: bytes) -> np.ndarray:
    return msgpack_numpy.unpackb(answer)["actions"]


@pytest.fixture(scope="module")
def gated():
    """A server with a `GatedEncoder`, and its policy and port."""
    policy = served_policy(encoder=GatedEncoder())
    with serving(policy) as port:
        yield policy, port


@contextmanager
def waiting(policy, port: int, messages: list[dict]) -> Iterator[list[ClientConnection]]:
    """Clients whose requests wait, in this order, for that of another; the gate is closed."""
    encoder = policy.agent.encoder
    with ExitStack() as clients:
        clients.callback(encoder.gate.set)
        encoder.gate.set()
        busy, *others = [clients.enter_context(greeted(port)) for _ in [None, *messages]]
        # The server's first request measures whether places matter, too.
        busy.send(msgpack_numpy.packb(observation(0)))
        busy.recv(timeout=10)
        encoder.gate.clear()
        encoder.reached.clear()
        busy.send(msgpack_numpy.packb(observation(0)))
        assert encoder.reached.wait(timeout=10)
        encoder.passes = 0
        for client, message in zip(others, messages, strict=True):
            client.send(msgpack_numpy.packb(message))
            for _ in range(2):  # once the second is answered, the message is in the queue
                assert client.ping().wait(timeout=10)
        yield others


def test_requests_that_wait_share_the_passes_of_the_encoder(gated):
    policy, port = gated
    with waiting(policy, port, [observation(step) for step in range(4)]) as clients:
        policy.agent.encoder.gate.set()
        answers = [client.recv(timeout=10) for client in clients]
        assert policy.agent.encoder.passes == 1 + 3  # the busy one's, and 8 images in passes of 3
    for step, answer in enumerate(answers):
        assert_acts(actions(answer), policy, [step, step])


def test_bad_requests_spoil_no_answer_of_those_that_wait_with_them(gated):
    """Refused when read, and refused by the encoder, which is given all images together."""
    policy, port = gated
    broken, unknown = observation(BROKEN_PIXEL, BROKEN_PIXEL), observation(1, side=2)
    with waiting(policy, port, [broken, observation(4), unknown, observation(5, 6)]) as clients:
        policy.agent.encoder.gate.set()
        assert clients[0].recv(timeout=10).startswith("error: the server failed on this message")
        assert "unknown: side" in clients[2].recv(timeout=10)
        assert_acts(actions(clients[1].recv(timeout=10)), policy, [4, 4])
        assert_acts(actions(clients[3].recv(timeout=10)), policy, [5, 6])


def test_a_client_that_vanishes_while_it_waits_stops_no_other(gated):
    policy, port = gated
    with waiting(policy, port, [observation(step) for step in range(3)]) as clients:
        reset(clients[1])
        policy.agent.encoder.gate.set()
        assert_acts(actions(clients[0].recv(timeout=10)), policy, [0, 0])
        assert_acts(actions(clients[2].recv(timeout=10)), policy, [2, 2])
    assert_still_serves(port, policy)


def test_health_reports_the_rate_and_latency_of_answers():
    def health(port: int) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as response:
            return response.read().decode()

    with serving(served_policy()) as port, robot(port) as client:
        assert health(port) == "OK\n\n"
        began, worked = [], []
        for step in range(5):
            began.append(time.perf_counter())
            worked.append(client.infer(observation(step))["server_timing"]["infer_ms"])
        client._ws.ping().wait(timeout=10)
        told = re.fullmatch(
            r"OK\nlatest 5 answers: (.*) per second, latency p50 (.*) ms, p99 (.*) ms\n",
            health(port),
        )
        end = time.perf_counter()
    # A reply is counted after it was sent, and before the next message of its client is read.
    counted = [*began[2:], end, end]
    waited = [1e3 * (last - first) for first, last in zip(began, counted, strict=True)]
    whole = end - began[0]
    rate, median, slow = map(float, told.groups())
    assert 5 / whole - 0.1 < rate < 5e3 / sum(worked) + 0.1
    assert statistics.median(worked) - 0.1 < median < statistics.median(waited) + 0.1
    assert median <= slow < max(waited) + 0.1
