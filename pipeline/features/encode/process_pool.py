"""Workers as processes of this machine.

They come from a fork server, which has imported torch once for all of them and holds no threads,
locks or GPU of this process. A worker ends when this process does: their connection then breaks.
"""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Lock, RLock

import torch
from tqdm import tqdm

from pipeline.features.encode.executors import Encoded, Lost, Ready
from pipeline.features.encode.unit_encoder import UnitOutcome
from pipeline.features.encode.worker import UNITS_IN_FLIGHT, UnitWorker, WorkerPlan
from policy.errors import VlaError


class ProcessPool:
    """Worker processes and the connections to them; implements `WorkerPool`."""

    def __init__(self, plan: WorkerPlan):
        """Prepare; nothing is started yet.

        Args:
            plan: of every worker; of several GPUs called `cuda`, they take turns.
        """
        self._plan = plan
        self._context = multiprocessing.get_context("forkserver")
        self._workers: dict[int, tuple[BaseProcess, Connection]] = {}
        self._ready: set[int] = set()

    def __enter__(self) -> "ProcessPool":
        self._context.set_forkserver_preload([__name__])
        return self

    def __exit__(self, *error: object) -> None:
        for worker, (process, connection) in self._workers.items():
            if worker not in self._ready:
                process.kill()  # it has written nothing, and may load for long
            elif error[0] is None:
                self.send(worker, None)
            connection.close()  # ends it whatever it is doing, if it was not told to end
        for process, _ in self._workers.values():
            process.join()

    def start(self, worker: int) -> None:
        """Start a worker; see `WorkerPool.start`."""
        ours, theirs = self._context.Pipe()
        plan = replace(self._plan, device=_device_of(worker, self._plan.device))
        process = self._context.Process(target=_serve, args=(theirs, plan), name=f"embed-{worker}")
        process.start()
        theirs.close()
        self._workers[worker] = process, ours

    def send(self, worker: int, unit: int | None) -> None:
        """Hand over a unit; see `WorkerPool.send`. None ends the worker."""
        try:
            self._workers[worker][1].send(unit)
        except BrokenPipeError:
            return  # `wait` finds the connection's end

    def wait(self) -> Sequence[Ready | Encoded | Lost]:
        """Wait until something happens; see `WorkerPool.wait`.

        Raises:
            VlaError, OSError: what a worker could not do.
        """
        connections = {connection: worker for worker, (_, connection) in self._workers.items()}
        ready = wait(list(connections))
        return [self._receive(worker) for held, worker in connections.items() if held in ready]

    def _receive(self, worker: int) -> Ready | Encoded | Lost:
        process, connection = self._workers[worker]
        try:
            said = connection.recv()
        except (EOFError, ConnectionError):
            del self._workers[worker]
            self._ready.discard(worker)
            connection.close()
            process.join()
            return Lost(worker, f"process {process.pid} ended with exit code {process.exitcode}")
        if isinstance(said, Exception):
            raise said
        if said is None:
            self._ready.add(worker)
            return Ready(worker)
        return Encoded(worker, said)


def _device_of(worker: int, device: str) -> str:
    if device != "cuda" or not torch.cuda.device_count():
        return device
    return f"cuda:{worker % torch.cuda.device_count()}"


def _serve(connection: Connection, plan: WorkerPlan) -> None:
    """Encode the units that come over a connection; tell None once ready, then each outcome."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; the parent ends us
    tqdm.set_lock(RLock())  # its own would leave a semaphore behind where we are killed
    sending = Lock()

    def tell(encoding: Future[UnitOutcome]) -> None:
        error = encoding.exception()
        if error is not None and not isinstance(error, (VlaError, OSError)):
            # One that cannot be sent would leave the parent waiting for ever.
            error = RuntimeError(f"{type(error).__name__}: {error}")
        with sending, suppress(ConnectionError):
            connection.send(error or encoding.result())

    waiters = ThreadPoolExecutor(max_workers=UNITS_IN_FLIGHT)
    try:
        try:
            worker = UnitWorker(plan)
        except (VlaError, OSError) as error:
            connection.send(error)
            return
        connection.send(None)
        while (unit := connection.recv()) is not None:
            waiters.submit(worker.encode_unit, unit).add_done_callback(tell)
    except (EOFError, ConnectionError):
        os._exit(0)  # the parent is gone or has failed: nothing more may be written
