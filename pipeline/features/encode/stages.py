"""What an embedding spends its time on, and doing things ahead of the encoder.

Knows time and threads; nothing about frames or stores.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, Literal, TypeVar

Stage = Literal["decode", "resize", "hash", "encode", "write"]
STAGES: Final[tuple[Stage, ...]] = ("decode", "resize", "hash", "encode", "write")
Task = TypeVar("Task")
Result = TypeVar("Result")


class StageClock:
    """Seconds spent in each stage; several threads may add to it at the same time."""

    def __init__(self) -> None:
        self.seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        """Add the time of the block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - started

    def take(self) -> dict[Stage, float]:
        """Return the seconds that were added since the last call."""
        with self._lock:
            taken, self.seconds = self.seconds, dict.fromkeys(STAGES, 0.0)
        return taken


def ahead(
    do: Callable[[Task], Result], tasks: Iterable[Task], depth: int
) -> Iterator[tuple[Task, Future[Result]]]:
    """Run tasks one after the other in a thread, at most `depth` ahead of who takes the results.

    Yields:
        Every task in order, and what became of it; its error is raised by `result()`.
    """
    pool = ThreadPoolExecutor(max_workers=1)
    try:
        waiting: deque[tuple[Task, Future[Result]]] = deque()
        for task in tasks:
            waiting.append((task, pool.submit(do, task)))
            if len(waiting) > depth:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
