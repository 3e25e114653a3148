"""A run's figures: one JSON object per line, and the trackers."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from pipeline.storage.local import write_atomically
from pipeline.training.run.tracking import Tracker

LOG_FILE = "log.jsonl"


class RunLog:
    """The open log of a run; a context manager."""

    def __init__(self, run: Path, step: int, trackers: Sequence[Tracker] = ()):
        """Open the log and drop its lines after `step`, which a resumed run writes again."""
        self._path = run / LOG_FILE
        self._trackers = trackers
        self._clock = time.monotonic(), step
        _cut_log(self._path, step)
        self._file: TextIO = self._path.open("a")

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures of a step."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.log(step, figures)

    def speed(self, step: int) -> float:
        """Return the optimizer steps per second since the last call."""
        now = time.monotonic()
        started, first = self._clock
        self._clock = now, step
        return (step - first) / max(now - started, 1e-9)


def _cut_log(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(f"{line}\n")
        except (ValueError, KeyError, TypeError):
            continue  # a line that a crash cut short
    write_atomically(path, "".join(kept).encode())
