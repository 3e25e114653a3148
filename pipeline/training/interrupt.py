"""Ctrl-C and SIGTERM as a question that a loop answers when its step is done.

Knows signals; nothing about training.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Remember the first Ctrl-C or SIGTERM instead of raising it; a second one ends at once.

    Outside the main thread, which alone gets signals, nothing is changed.

    Yields:
        Whether one has come.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = threading.Event()
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}

    def remember(_number: int, _frame: FrameType | None) -> None:
        came.set()
        for kind, handler in before.items():
            signal.signal(kind, handler)

    for kind in before:
        signal.signal(kind, remember)
    try:
        yield came.is_set
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
