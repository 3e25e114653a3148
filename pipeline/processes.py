"""Processes with an object each: simulators of rollouts and recordings, trainings of several seeds.

They end with the process that started them. What a worker does depends on its messages alone, so
results do not depend on how many there are.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from pipeline.errors import WorkerLostError
from policy.errors import VlaError


class Worker:
    """An object in a process of its own; one call at a time."""

    def __init__(self, process: BaseProcess, connection: Connection):
        self.process = process
        self.connection = connection

    def send(self, method: str, *arguments: Any) -> None:
        """Call a method of the object; `receive` returns the result."""
        with suppress(OSError):  # a process that has ended left its reason for `receive`
            self.connection.send((method, *arguments))

    def receive(self) -> Any:
        """Wait for the result of the call.

        Raises:
            VlaError, OSError: what the call raised, or that the process ended.
        """
        try:
            result = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join(timeout=5)
            raise WorkerLostError(
                f"worker process: exited with code {self.process.exitcode}; -9 means out of "
                "memory: use fewer processes at once. What is finished is kept"
            ) from error
        if isinstance(result, VlaError | OSError):
            raise result
        return result


class LocalWorker:
    """An object in this process, with the methods of a `Worker`."""

    def __init__(self, held: object):
        self._held = held
        self._result: Any = None

    def send(self, method: str, *arguments: Any) -> None:
        """Call a method of the object; see `Worker.send`."""
        self._result = getattr(self._held, method)(*arguments)

    def receive(self) -> Any:
        """Return the result of the call."""
        return self._result


AnyWorker = Worker | LocalWorker


def ready(busy: Sequence[AnyWorker]) -> list[AnyWorker]:
    """Wait until a worker has a result, or its process has ended; return all of these."""
    remote = {worker.connection: worker for worker in busy if isinstance(worker, Worker)}
    if len(remote) < len(busy):
        return list(busy)
    found = set(wait(list(remote)))
    return [worker for connection, worker in remote.items() if connection in found]


def start_process(target: Callable[..., None], arguments: tuple[Any, ...]) -> BaseProcess:
    """Start a process that ignores Ctrl-C, because the caller ends it, and prints no traceback."""
    context = multiprocessing.get_context("spawn")  # OpenGL does not survive a fork
    process = context.Process(target=_run, args=(target, arguments), daemon=True)
    if threading.current_thread() is not threading.main_thread():
        process.start()  # only the main thread may set a handler, and only it gets Ctrl-C
        return process
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)
    return process


def _run(target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    target(*arguments)


def end_with_parent() -> None:
    """Have this process get SIGTERM when the process that started it has ended, however it did."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def workers(build: Callable[[], Any], count: int) -> Iterator[list[Worker]]:
    """Start processes; end them at once if the block is left by an error or Ctrl-C.

    `build` makes the object that each holds, which has a `close`; picklable.
    """
    started: list[Worker] = []
    try:
        for _ in range(count):
            ours, theirs = multiprocessing.Pipe()
            process = start_process(_work, (build, theirs))
            theirs.close()  # so that the end of the process is the end of the pipe
            started.append(Worker(process, ours))
        yield [*started]
    except BaseException:
        for worker in started:
            worker.process.terminate()
        raise
    finally:
        for worker in started:
            worker.connection.close()  # an idle process reads the end of the pipe, and returns
            worker.process.join()


def _work(build: Callable[[], Any], connection: Connection) -> None:
    """Execute calls until the pipe closes; runs in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Mesa's software renderer starts one thread per core in each process; set before OpenGL loads.
    os.environ["LP_NUM_THREADS"] = "1"
    with suppress(EOFError, ConnectionError):  # the process at the other end is done, or has ended
        try:
            with closing(build()) as held:
                while True:
                    method, *arguments = connection.recv()
                    connection.send(getattr(held, method)(*arguments))
        except ConnectionError:
            raise
        except (VlaError, OSError) as error:
            connection.send(error)
