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
    """What could not be read or drawn, for people."""


def read_log(path: Path) -> TrainingLog:
    """Read a run's log; a run that has not logged yet has none.

    A line that does not parse is left out, and a remark says so: the last one is cut short while a
    run writes it, or where it was killed.

    Raises:
        OSError: the file is there and cannot be read.
    """
    log = TrainingLog()
    if not path.exists():
        return log
    unread, not_finite, number = [], 0, 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            row = _parse(line)
            if row is None:
                unread.append(number)
            else:
                not_finite += _add(log, row)
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


def _parse(line: str) -> dict[str, object] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not _is_whole(row.get(STEP)):
        return None
    return row


def _add(log: TrainingLog, row: dict[str, object]) -> int:
    """Add a row's figures and return how many of them are not finite."""
    step, trials = row[STEP], row.get("rollout_episodes")
    assert isinstance(step, int)
    not_finite = 0
    for name, value in row.items():
        if name in {STEP, "rollout_episodes"} or isinstance(value, bool):
            continue
        if not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            not_finite += 1
            continue
        counts = name == "rollout_success" and isinstance(trials, int) and trials > 0
        point = Point(step, float(value), trials if counts and isinstance(trials, int) else None)
        log.figures.setdefault(name, []).append(point)
    return not_finite


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
