"""The server over real sockets: the public client, and everything that must not stop it."""

import asyncio
import concurrent.futures
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import suppress

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from pydantic import SecretStr
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.frames import CloseCode

from pipeline.errors import ConfigError
from pipeline.rollout.serve.config import ServeConfig
from pipeline.rollout.serve.sockets import PolicyServer, run_until_signal
from tests.pipeline.rollout.pixel_encoder import BROKEN_PIXEL
from tests.pipeline.rollout.serve.served import (
    FIRST_SEED,
    assert_acts,
    assert_still_serves,
    expected_actions,
    greeted,
    observation,
    reset,
    robot,
    run_server,
    served_policy,
    serving,
)
from tests.pipeline.rollout.serve.test_wire import BOMBS

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def policy():
    return served_policy()


@pytest.fixture(scope="module")
def port(policy):
    with serving(policy, max_message_mib=1) as port:
        yield port


def status(port: int, path: str, **headers: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_public_client_gets_metadata_actions_and_timing(port, policy):
    with robot(port) as client:
        told = client.get_server_metadata()
        first = client.infer(observation(0, prompt="open the drawer"))
        second = client.infer(observation(7, 8))
    assert told["views"] == ["front", "top"]
    assert (told["state_dim"], told["action_dim"], told["fps"]) == (5, 4, 50.0)
    assert (told["obs_horizon"], told["num_action_steps"]) == (2, 8)
    assert told["encoder"]["weights"] == "f" * 64
    assert (told["checkpoint_step"], told["max_message_bytes"]) == (3, 2**20)

    np.testing.assert_array_equal(first["actions"], expected_actions(policy, [0, 0]))
    np.testing.assert_array_equal(second["actions"], expected_actions(policy, [7, 8], decision=1))
    assert first["actions"].dtype == np.float32
    assert [first["history"], second["history"]] == ["exact", "exact"]
    timing = second["server_timing"]
    assert 0 < timing["encode_ms"] + timing["head_ms"] < timing["infer_ms"]


def test_each_client_plays_its_own_episode(port, policy):
    """Three robots at once: each gets what it would get alone, but for float32's rounding."""
    ready = threading.Barrier(3)

    def play(first: int) -> list[np.ndarray]:
        steps = range(first, first + 5)
        with robot(port) as client:
            ready.wait(timeout=10)
            shown = [observation(max(first, step - 1), step) for step in steps]
            return [client.infer(one)["actions"] for one in shown]

    with concurrent.futures.ThreadPoolExecutor(3) as robots:
        played = list(robots.map(play, (0, 20, 40)))
    for first, chunks in zip((0, 20, 40), played, strict=True):
        for decision, chunk in enumerate(chunks):
            current = first + decision
            seen = [max(first, current - 1), current]
            assert_acts(chunk, policy, seen, decision=decision)


def test_a_new_connection_begins_a_new_episode(port, policy):
    for _ in range(2):
        with robot(port) as client:
            client.infer(observation(3))
            client.reset()
            answer = client.infer(observation(4, reset=True))
        expected = expected_actions(policy, [4, 4], seed=FIRST_SEED + 1)
        np.testing.assert_array_equal(answer["actions"], expected)


VALID = msgpack_numpy.packb(observation(0))
STRANGERS = {
    "garbage": b"\xc1" + bytes(range(256)),
    "text": "hello",
    "a truncated message": VALID[:-1],
    "half a message": VALID[: len(VALID) // 2],
    "nothing": b"",
    "an object array": VALID.replace(b"|u1", b"|O8"),
    "texts": msgpack_numpy.packb({"observation/state": np.array(["a" * 99])}),
    "another dtype": msgpack_numpy.packb(observation(0) | {"observation/top": np.zeros((4, 4, 3))}),
    "another width": msgpack_numpy.packb(observation(0) | {"observation/state": np.zeros(9)}),
    "another key": msgpack_numpy.packb({"observation/image": np.zeros((4, 4, 3), np.uint8)}),
    **{name: bomb for name, bomb in BOMBS.items() if len(bomb) <= 2**20},
    "a million empty maps": b"\x81\xa1a\xdc\x01\x00" + (b"\xdc\x01\x00" + b"\x80" * 256) * 4_000,
    "deep nesting": b"\x91" * 1_000_000,
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_message_that_is_no_observation_gets_a_line_and_the_door(port, policy, name):
    with greeted(port) as connection:
        connection.send(STRANGERS[name])
        line = connection.recv(timeout=10)
        assert isinstance(line, str)
        assert line.startswith("error: ")
        assert line.isprintable()
        with pytest.raises(ConnectionClosedError) as closed:
            connection.recv(timeout=10)
        assert closed.value.rcvd.code == CloseCode.UNSUPPORTED_DATA
    assert_still_serves(port, policy)


def test_the_public_client_shows_the_line_of_a_refusal(port, policy):
    told = "unknown: observation/side"
    with robot(port) as client, pytest.raises(RuntimeError, match=told):
        client.infer(observation(0) | {"observation/side": np.zeros(3)})
    assert_still_serves(port, policy)


@pytest.mark.parametrize("parts", [1, 3], ids=["at once", "in parts"])
def test_oversized_messages_are_cut_off(port, policy, parts, caplog):
    message = b"\x00" * (2**20 + 1)
    cuts = [message[part::parts] for part in range(parts)]
    with greeted(port) as connection:
        with suppress(ConnectionClosed):  # perhaps before all of it is sent
            connection.send(cuts if parts > 1 else message)
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=10)
        assert connection.protocol.close_rcvd.code == CloseCode.MESSAGE_TOO_BIG
    assert_still_serves(port, policy)
    [told] = caplog.messages
    assert told.startswith("127.0.0.1: a message of more than 1 MiB was cut off; send smaller")
    assert "--set max_message_mib=" in told


def test_a_connection_that_breaks_in_a_message_harms_nobody(port, policy):
    """A header that announces 1 MB, a little of it, then a reset without goodbye."""
    connection = greeted(port)
    header = b"\x82\xff" + struct.pack(">Q", 1_000_000) + b"\0\0\0\0"
    connection.socket.sendall(header + b"\x81" * 100)
    assert_still_serves(port, policy)  # while it is half sent, too
    reset(connection)
    assert_still_serves(port, policy)


def test_bytes_that_are_no_http_harm_nobody(port, policy, caplog):
    for content in (
        b"\x16\x03\x01\x02\x00" * 50,
        b"POST / HTTP/1.1\r\n\r\n",
        b"GET /" + b"x" * 99_999,
    ):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(content)
    assert_still_serves(port, policy)
    assert "Traceback" not in caplog.text


def test_a_killed_client_leaves_the_server_serving(port, policy):
    code = (
        "import sys, numpy as np\n"
        "from openpi_client.websocket_client_policy import WebsocketClientPolicy\n"
        "client = WebsocketClientPolicy('127.0.0.1', int(sys.argv[1]))\n"
        "frame, state = np.zeros((256, 256, 3), np.uint8), np.zeros(5, np.float32)\n"
        "keys = {'observation/front': frame, 'observation/top': frame}\n"
        "while True:\n"
        "    client.infer({**keys, 'observation/state': state})\n"
        "    print('moved', flush=True)\n"
    )
    words = [sys.executable, "-c", code, str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as client:
        assert client.stdout.readline() == b"moved\n"
        client.kill()
    assert_still_serves(port, policy)


def test_a_client_that_never_takes_its_answers_harms_nobody(port, policy):
    with greeted(port) as silent:
        for _ in range(3):
            silent.send(VALID)
        assert_still_serves(port, policy)


def test_a_defect_of_ours_is_told_and_logged_and_ends_one_connection_only(port, policy, caplog):
    told = "the server failed on this message; see its log$"  # and nothing of our insides
    with robot(port) as other, robot(port) as client:
        with pytest.raises(RuntimeError, match=told):
            client.infer(observation(BROKEN_PIXEL))
        answer = other.infer(observation(1))
    assert "RuntimeError: a defect" in caplog.text
    np.testing.assert_array_equal(answer["actions"], expected_actions(policy, [1, 1]))


def test_web_pages_are_turned_away(port, policy):
    with pytest.raises(InvalidStatus) as refused:
        greeted(port, origin="http://evil.example")
    assert refused.value.response.status_code == 403
    assert_still_serves(port, policy)


def test_health_is_told_to_everyone(port):
    assert status(port, "/healthz") == 200
    assert status(port, "/") == 426  # what a websocket server says to a browser


def test_only_the_token_opens_the_door(policy, caplog):
    with caplog.at_level(logging.DEBUG), serving(policy, token=SecretStr(TOKEN)) as port:
        with robot(port, api_key=TOKEN) as client:
            actions = client.infer(observation(1))["actions"]
        np.testing.assert_array_equal(actions, expected_actions(policy, [1, 1]))
        for headers in (
            {},
            {"Authorization": f"Api-Key {TOKEN[:-1]}"},
            {"Authorization": f"Api-Key {TOKEN}0"},
            {"Authorization": f"Bearer {TOKEN}"},
            {"Authorization": "Api-Key \xff"},
        ):
            with pytest.raises(InvalidStatus) as refused:
                greeted(port, additional_headers=headers)
            assert refused.value.response.status_code == 401
        assert status(port, "/healthz") == 200
    server_log = [r for r in caplog.records if not r.name.startswith("websockets.client")]
    assert not [record for record in server_log if TOKEN in record.getMessage()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_and_leave_nothing_behind(policy, number, tmp_path):
    lines = []

    def announce(line: str) -> None:
        lines.append(line)
        os.kill(os.getpid(), number)

    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, handler)  # whoever runs us in the background ignores SIGINT
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as worker:
            server = PolicyServer(policy, ServeConfig(run=tmp_path, port=0), worker)
            asyncio.run(run_until_signal(server, announce))
        assert re.fullmatch(
            rf"serving {tmp_path} .*, NOT pretrained\) at ws://127\.0\.0\.1:\d+", lines[0]
        )
        assert signal.getsignal(number) == handler
    finally:
        signal.signal(number, before)


def test_a_port_that_is_taken_is_refused_in_one_line(port, policy):
    told = rf"127\.0\.0\.1:{port}: expected an address to listen on, found: .* in use; choose"
    with pytest.raises(ConfigError, match=told):
        run_server(policy, lambda *_: None, port=port)
