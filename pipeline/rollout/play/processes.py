"""Processes that play, record or roll out; they end with the process that started them."""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from pipeline.errors import EnvError
from policy.errors import VlaError


@dataclass(frozen=True, eq=False)
class Spawned:
    """A process, seen from the one that started it."""

    process: BaseProcess
    """Ends when its connection closes."""
    connection: Connection
    """Ready when there is an answer or the process has ended."""

    def tell(self, message: Any) -> None:
        """Hand over what to do; `answer` says what came of it."""
        with suppress(OSError):  # a process that has ended left its reason for `answer`
            self.connection.send(message)

    def answer(self, ended: str) -> Any:
        """Wait for what came of it.

        Args:
            ended: what to say of a process that ended by itself, with `{code}` in it.

        Raises:
            VlaError: what the process raised, or that it ended.
        """
        try:
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join(timeout=5)
            raise EnvError(ended.format(code=self.process.exitcode)) from error
        if isinstance(answer, VlaError):
            raise answer
        return answer


def start_process(target: Callable[..., None], arguments: tuple[Any, ...]) -> BaseProcess:
    """Start a process that ignores Ctrl-C: the caller ends it.

    Args:
        target: runs in it.
        arguments: picklable.
    """
    context = multiprocessing.get_context("spawn")  # OpenGL does not survive a fork
    process = context.Process(target=target, args=arguments, daemon=True)
    with _ctrl_c_ignored():
        process.start()
    return process


@contextmanager
def spawned(
    target: Callable[..., None], arguments: tuple[Any, ...], count: int
) -> Iterator[list[Spawned]]:
    """Start processes; end them at once if the block is left by an error or Ctrl-C.

    Args:
        target: runs in each; takes `arguments` and its end of the pipe, and returns when the other
            end closes.
        arguments: for all.
        count: how many.
    """
    crew: list[Spawned] = []
    try:
        for _ in range(count):
            ours, theirs = multiprocessing.Pipe()
            process = start_process(target, (*arguments, theirs))
            theirs.close()  # so that the end of the process is the end of the pipe
            crew.append(Spawned(process, ours))
        yield [*crew]
    except BaseException:
        for member in crew:
            member.process.terminate()
        raise
    finally:
        for member in crew:
            member.connection.close()  # an idle process reads the end of the pipe, and returns
            member.process.join()


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Start children deaf to Ctrl-C: this process ends them, and they print no traceback."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler, and only it gets Ctrl-C
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
