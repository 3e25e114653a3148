"""A small policy that is served over real sockets, and what its robots send."""

import asyncio
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.sync.client import ClientConnection, connect

from pipeline.rollout.gate.camera_check import CameraCheck, CameraCheckMode
from pipeline.rollout.serve.config import ServeConfig
from pipeline.rollout.serve.request import RequestReader
from pipeline.rollout.serve.session import ServedPolicy
from pipeline.rollout.serve.sockets import PolicyServer
from pipeline.training.data.sampling import seeded_generator
from policy.agent import VLAAgent
from policy.encoders.base import ImageEncoder
from tests.pipeline.rollout.gate.test_checks import description
from tests.pipeline.rollout.pixel_encoder import PixelEncoder

FIRST_SEED = 7
# Actions are float32 of 1.5 at most; the last bits of a product depend on its number of rows.
BATCH_TOLERANCE = 1e-5


def served_policy(
    obs_horizon: int = 2,
    cameras: CameraCheck | None = None,
    camera_check: CameraCheckMode = "off",
    encoder: ImageEncoder | None = None,
) -> ServedPolicy:
    """Two views (front, top), 5 numbers of state, 4 of action; random weights."""
    held = description()
    config = held.config.agent.model_copy(update={"obs_horizon": obs_horizon})
    agent = VLAAgent(config, held.spec, encoder or PixelEncoder()).eval()
    weights = torch.Generator().manual_seed(0)
    for parameter in agent.parameters():  # fresh heads answer zeros
        torch.nn.init.normal_(parameter, std=0.2, generator=weights)
    return ServedPolicy(
        description=held,
        agent=agent,
        reader=RequestReader(held.spec, obs_horizon),
        checkpoint_step=3,
        nfe=1,
        first_seed=FIRST_SEED,
        cameras=cameras,
        camera_check=camera_check,
    )


def frame(step: int, size: tuple[int, int] = (256, 256)) -> np.ndarray:
    return np.full((*size, 3), step, np.uint8)


def state(step: int) -> np.ndarray:
    return np.full(5, step / 10, np.float32)


def observation(*steps: int, **more: object) -> dict[str, object]:
    """One observation of a control step, or a stack of several."""
    frames, states = [frame(step) for step in steps], [state(step) for step in steps]
    one = len(steps) == 1
    return {
        "observation/front": frames[0] if one else np.stack(frames),
        "observation/top": frames[0] if one else np.stack(frames),
        "observation/state": states[0] if one else np.stack(states),
        **more,
    }


def expected_actions(
    policy: ServedPolicy, steps: list[int], *, seed: int = FIRST_SEED, decision: int = 0
) -> np.ndarray:
    """Ask the agent itself, for the control steps that training would show it."""
    agent = policy.agent
    frames = np.stack([np.stack([frame(step)] * 2) for step in steps])
    states = torch.from_numpy(np.stack([state(step) for step in steps]))
    noise = agent.noise(1, seeded_generator(seed, "decision", decision), 1)
    features = {name: values[None] for name, values in agent.encode_views(frames).items()}
    chunk = agent.predict(features, states[None], noise, 1)
    return chunk[0, : agent.config.num_action_steps].numpy()


def run_server(
    policy: ServedPolicy,
    ready: Callable[[str, asyncio.AbstractEventLoop, asyncio.Event], None],
    **settings: object,
) -> None:
    """Serve until the event that `ready` was given is set in its loop."""
    config = ServeConfig(run=Path("run"), **settings)

    async def run(worker: ThreadPoolExecutor) -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        server = PolicyServer(policy, config, worker)
        await server.run(stop, lambda url: ready(url, loop, stop))

    with ThreadPoolExecutor(max_workers=1) as worker:
        asyncio.run(run(worker))


@contextmanager
def serving(policy: ServedPolicy, **settings: object) -> Iterator[int]:
    """Serve in a thread of its own, on a free port of this machine, which it yields."""
    box: queue.Queue[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()
    thread = threading.Thread(
        target=run_server,
        args=(policy, lambda *told: box.put(told)),
        kwargs={"port": 0, **settings},
    )
    thread.start()
    url, loop, stop = box.get(timeout=10)
    try:
        yield int(url.rpartition(":")[2])
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=30)
        assert not thread.is_alive()


def assert_acts(actions: np.ndarray, policy: ServedPolicy, steps: list[int], **which: int) -> None:
    """They are those of `expected_actions`, even if given together with others'."""
    expected = expected_actions(policy, steps, **which)
    np.testing.assert_allclose(actions, expected, rtol=0, atol=BATCH_TOLERANCE)


@contextmanager
def robot(port: int, **settings: str) -> Iterator[WebsocketClientPolicy]:
    client = WebsocketClientPolicy("127.0.0.1", port, **settings)
    try:
        yield client
    finally:
        client._ws.close()  # the package itself has no way to


def greeted(port: int, **settings: object) -> ClientConnection:
    """Connect as a stranger and take the metadata."""
    connection = connect(f"ws://127.0.0.1:{port}", compression=None, **settings)
    assert isinstance(connection.recv(timeout=10), bytes)
    return connection


def reset(connection: ClientConnection) -> None:
    """Break the connection off without goodbye."""
    linger = struct.pack("ii", 1, 0)
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.socket.close()


def assert_still_serves(port: int, policy: ServedPolicy) -> None:
    with robot(port) as client:
        actions = client.infer(observation(0, 1))["actions"]
    assert_acts(actions, policy, [0, 1])
