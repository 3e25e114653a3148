"""Processes that are told what to do through a pipe, and end with whoever started them.

Knows processes; nothing about what they do.
"""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any


@dataclass(frozen=True, eq=False)
class Spawned:
    """A process, seen from the one that started it."""

    process: BaseProcess
    """Ends when its connection closes."""
    connection: Connection
    """Ready when there is an answer or the process has ended."""


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
    context = multiprocessing.get_context("spawn")  # OpenGL does not survive a fork
    crew: list[Spawned] = []
    try:
        with _ctrl_c_ignored():
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=target, args=(*arguments, theirs), daemon=True)
                process.start()
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
