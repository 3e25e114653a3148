"""The figures of `log.jsonl`, by name, even if a crash or a live run left the file damaged."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pipeline.rollout.play.result import wilson_interval

STEP: Final = "step"  # optimizer steps behind a row; every row has it


@dataclass(frozen=True)
class Point:
    """One figure at one step."""

    step: int
    value: float
    trials: int | None = None
    """Episodes behind a success rate; None for every other figure."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval of a success rate; None for every other figure."""
        return (
            wilson_interval(round(self.value * self.trials), self.trials) if self.trials else None
        )


@dataclass
class TrainingLog:
    """What a run logged so far."""

    figures: dict[str, list[Point]] = field(default_factory=dict)
    """Finite values in the order of their steps."""
    remarks: list[str] = field(default_factory=list)
    """What could not be read or drawn."""


def read_log(path: Path) -> TrainingLog:
    """Read a run's log; a run that has not logged yet has none.

    A line that does not parse is left out, with a remark: the last one is incomplete while a run
    writes it, or after a kill.

    Raises:
        OSError: the file is there and cannot be read.
    """
    log = TrainingLog()
    if not path.exists():
        return log
    unread, not_finite, number = [], 0, 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                step, trials = row.pop(STEP), row.pop("rollout_episodes", 0)
            except (ValueError, KeyError, TypeError, AttributeError):
                unread.append(number)
                continue
            for name, value in row.items():
                if not math.isfinite(value):
                    not_finite += 1
                    continue
                episodes = int(trials) if name == "rollout_success" and trials else None
                log.figures.setdefault(name, []).append(Point(step, float(value), episodes))
    for points in log.figures.values():
        points.sort(key=lambda point: point.step)  # rollouts report later than their step
    if unread and unread[-1] == number:
        unread.pop()
        log.remarks.append(
            f"{path.name} ends in the middle of a line: the run is writing it, or was killed"
        )
    if unread:
        some = ", ".join(map(str, unread[:5])) + (", ..." if len(unread) > 5 else "")
        log.remarks.append(f"{path.name}: skipped unreadable lines: {some}")
    if not_finite:
        log.remarks.append(f"{path.name}: {not_finite} values are NaN or infinite and not drawn")
    return log
