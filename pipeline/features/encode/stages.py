"""One stage of a pipeline in a thread of its own, ahead of the stage that takes its results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def ahead(
    do: Callable[[Task], Result], tasks: Iterable[Task], depth: int
) -> Iterator[tuple[Task, Future[Result]]]:
    """Run `do` on tasks in a thread, at most `depth` of them ahead of the caller.

    Yields:
        Every task in order, and its result; the task's error is raised by `result()`.
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
