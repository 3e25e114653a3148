"""What do several robots get from one server, answered together against one after another?

    OMP_NUM_THREADS=1 python -m tests.bench.serving                       # a store made on a CPU
    OMP_NUM_THREADS=1 python -m tests.bench.serving --images-per-pass 32  # on a GPU

Two server processes, which differ in that alone, hold a policy of the design's sizes with random
weights. openpi's clients send two steps of three views, without a pause; the servers take turns,
and no answer is timed before each client has had one. Processor time is the server's own, which
other programs disturb least.
"""

import argparse
import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from pipeline.rollout.serve.config import ServeConfig
from pipeline.rollout.serve.request import RequestReader
from pipeline.rollout.serve.session import ServedPolicy, answer_together
from pipeline.rollout.serve.sockets import PolicyServer, run_until_signal
from policy.agent import AgentConfig, VLAAgent
from policy.encoders.base import EncoderSettings
from policy.encoders.registry import load_encoder
from policy.spec import AgentSpec
from tests.pipeline.rollout.gate.test_checks import description

VIEWS = ("front", "top", "side")
NUMBERS = 7  # of state and action
CLIENTS = (1, 4, 16)
TURNS = ("together", "one by one", "one by one", "together")


class OneByOneServer(PolicyServer):
    """Answers one request after another."""

    def _answer_waiting(self) -> None:
        answer_together(self._policy, [self._waiting.popleft()])


def load_policy(settings: EncoderSettings) -> ServedPolicy:
    """Build a policy of the design's sizes with random weights."""
    encoder = load_encoder(settings)
    [feature] = encoder.identity.features
    spec = AgentSpec(
        view_names=VIEWS,
        feature_shapes={feature.name: feature.shape},
        state_dim=NUMBERS,
        action_dim=NUMBERS,
    )
    agent = VLAAgent(AgentConfig(), spec, encoder).to(settings.device).eval()
    return ServedPolicy(
        description=description().model_copy(update={"spec": spec}),
        agent=agent,
        reader=RequestReader(spec, agent.config.obs_horizon),
        checkpoint_step=0,
        nfe=1,
        first_seed=0,
        cameras=None,
        camera_check="off",
    )


def serve(kind: str, settings: EncoderSettings, ready: Connection) -> None:
    """Serve until SIGTERM; the first line says where."""
    server_type = PolicyServer if kind == "together" else OneByOneServer
    with ThreadPoolExecutor(max_workers=1) as worker:
        policy = worker.submit(load_policy, settings).result()
        server = server_type(policy, ServeConfig(run=Path("random"), port=0), worker)
        asyncio.run(run_until_signal(server, ready.send))


@contextmanager
def served(kind: str, settings: EncoderSettings) -> Iterator[tuple[int, int]]:
    """Serve in a process of its own; its port and number."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(kind, settings, theirs))
    process.start()
    try:
        yield int(ours.recv().rpartition(":")[2]), process.pid
    finally:
        process.terminate()
        process.join()


def play(port: int, seed: int, ready: threading.Barrier, seconds: float) -> list[float]:
    """Request actions for some seconds; how long each answer took."""
    numbers = np.random.default_rng(seed)
    fields = {
        f"observation/{view}": numbers.integers(0, 256, (2, 256, 256, 3), np.uint8)
        for view in VIEWS
    }
    fields["observation/state"] = np.zeros((2, NUMBERS), np.float32)
    client = WebsocketClientPolicy("127.0.0.1", port)
    client.infer(fields)
    ready.wait()
    waited, end = [], time.perf_counter() + seconds
    while (asked := time.perf_counter()) < end:
        client.infer(fields)
        waited.append(time.perf_counter() - asked)
    client._ws.close()
    return waited


def processor_s(process: int) -> float:
    """Return how long a process has computed, in all its threads."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@dataclass
class Tally:
    """What the clients of one server got."""

    waited: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0
    processor_s: float = 0.0

    def add(self, port: int, process: int, num_clients: int, seconds: float) -> None:
        """Let some clients play for some seconds."""
        ready = threading.Barrier(num_clients + 1)
        with ThreadPoolExecutor(num_clients) as clients:
            playing = [
                clients.submit(play, port, seed, ready, seconds) for seed in range(num_clients)
            ]
            ready.wait()
            started, computed = time.perf_counter(), processor_s(process)
            self.waited += [each for robot in playing for each in robot.result()]
        self.elapsed_s += time.perf_counter() - started
        self.processor_s += processor_s(process) - computed

    def cells(self) -> str:
        """Return the cells of a row."""
        middle, slow = 1e3 * np.percentile(self.waited, [50, 99])
        rate = len(self.waited) / self.elapsed_s
        cost = 1e3 * self.processor_s / len(self.waited)
        return f"{rate:.1f} | {middle:.0f} | {slow:.0f} | {cost:.0f}"


def main() -> None:
    """Print a table of both ways."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--encoder", default="efficientnet-lite0")
    arguments.add_argument("--images-per-pass", type=int, default=len(VIEWS))
    arguments.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    arguments.add_argument("--seconds", type=float, default=15, help="per row, way and turn")
    given = arguments.parse_args()
    settings = EncoderSettings(
        name=given.encoder,
        images_per_pass=given.images_per_pass,
        features=("pooled",),
        device=given.device,
    )
    print(f"{given.encoder}, {given.images_per_pass} images per pass, {given.device}\n")
    print("| clients | answers | per s | p50, ms | p99, ms | processor ms each |")
    print("|---|---|---|---|---|---|")
    with ExitStack() as servers:
        running = {kind: servers.enter_context(served(kind, settings)) for kind in set(TURNS)}
        for num_clients in CLIENTS:
            tallies = {kind: Tally() for kind in running}
            for kind in TURNS:
                tallies[kind].add(*running[kind], num_clients, given.seconds)
            for kind, tally in sorted(tallies.items()):
                print(f"| {num_clients} | {kind} | {tally.cells()} |", flush=True)


if __name__ == "__main__":
    main()
