"""Whoever looks at a run while it trains, in processes of its own.

The trainer knows this protocol and nothing of what is behind it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable  # the test run checks types
class TrainingWatcher(Protocol):
    """Told of every checkpoint; gives figures for the log when they are ready."""

    def checkpoint_written(self, run: Path, step: int) -> None:
        """Take note of a checkpoint; must return at once, and may keep the run's files open."""

    def figures(self) -> Sequence[tuple[int, Mapping[str, float]]]:
        """Return what has become ready since the last call, with the step that it is about."""

    def finish(self) -> None:
        """Wait for what is still under way; `figures` is asked once more afterwards."""
