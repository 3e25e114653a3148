"""The data of a report: runs with their logs and rollouts, read and checked.

Next to what `pipeline/training` writes, the folder of a run has `rollouts/NAME` with `result.json`,
a video per episode in `videos` and its first frame with the end-effector's path in `paths`. NAME is
`step_00001000` where the trainer rolled out by itself.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from pydantic import ValidationError

from pipeline.errors import RunError
from pipeline.rollout.play.result import RolloutResult, success_fields, wilson_interval
from pipeline.training.run.checkpoint import checkpoint_steps
from pipeline.training.run.folder import RunDescription, read_run
from policy.agent import VLAAgent
from policy.errors import invalid_field

VALIDATION_NAME: Final = re.compile(r"step_\d{8}")
VALIDATION_ERROR: Final = "val_error"  # its name in log.jsonl
SUCCESS_RATE: Final = "rollout_success"  # the same, of validation rollouts
NUM_COLORS: Final = 8  # of the style sheet

EpisodeKey = tuple[str, int]  # environment, in a rollout of several, and seed


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
        if not self.trials:
            return None
        return wilson_interval(round(self.value * self.trials), self.trials)


@dataclass
class TrainingLog:
    """What a run logged so far."""

    figures: dict[str, list[Point]] = field(default_factory=dict)
    """Finite values in the order of their steps."""
    remarks: list[str] = field(default_factory=list)
    """What could not be read or drawn."""


@dataclass(frozen=True)
class Rollout:
    """One rollout of a run."""

    folder: Path
    result: RolloutResult

    @property
    def name(self) -> str:
        """Its folder's name."""
        return self.folder.name

    @property
    def is_validation(self) -> bool:
        """Whether it is a validation rollout, made during training."""
        return VALIDATION_NAME.fullmatch(self.name) is not None

    @property
    def solved(self) -> int:
        """Number of solved episodes."""
        return sum(episode.success for episode in self.result.episodes)

    @property
    def successes(self) -> dict[EpisodeKey, bool]:
        """Whether each episode was solved."""
        return {(episode.task, episode.seed): episode.success for episode in self.result.episodes}


@dataclass(frozen=True)
class RunContents:
    """One run, finished or not."""

    label: str
    """Its name on the page: the shortest end of its path that no other run shares."""
    color: str
    """Class of its color in the style sheet."""
    description: RunDescription
    num_parameters: int
    step: int
    """Optimizer steps behind the latest checkpoint; 0 without one."""
    log: TrainingLog
    rollouts: tuple[Rollout, ...]
    """By name; the trainer's own validations last, the latest of them first."""

    @property
    def final_rollouts(self) -> tuple[Rollout, ...]:
        """The rollouts by vla-rollout; the latest validation where there is none."""
        requested = tuple(rollout for rollout in self.rollouts if not rollout.is_validation)
        return requested or self.rollouts[:1]

    @property
    def validation_error(self) -> tuple[Point, Point] | None:
        """The last and the smallest validation error; None where none was measured."""
        points = self.log.figures.get(VALIDATION_ERROR)
        return (points[-1], min(points, key=lambda point: point.value)) if points else None


def read_contents(folders: Sequence[Path]) -> list[RunContents]:
    """Read runs, one or more.

    Raises:
        RunError: a folder holds no run, is named twice, or a file in it is damaged.
    """
    resolved = [folder.resolve() for folder in folders]
    twice = {str(folder) for folder in resolved if resolved.count(folder) > 1}
    if twice:
        raise RunError(
            f"{', '.join(sorted(twice))}: expected each run once, found it twice; remove one"
        )
    labels = distinct_labels(resolved)
    return [
        _read_one(folder, label, color_class(index))
        for index, (folder, label) in enumerate(zip(folders, labels, strict=True))
    ]


def distinct_labels(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of different absolute paths that tell them apart."""
    depth, labels = 1, [folder.name for folder in folders]
    while len(set(labels)) < len(labels):
        depth += 1
        labels = ["/".join(folder.parts[1:][-depth:]) for folder in folders]
    return labels


def color_class(index: int) -> str:
    """Return the class of the color of run `index`; lines of colors used twice are dashed."""
    dashed = " dashed" if index >= NUM_COLORS else ""
    return f"s{index % NUM_COLORS}{dashed}"


def _read_one(folder: Path, label: str, color: str) -> RunContents:
    description = read_run(folder)
    with torch.device("meta"):  # shapes without numbers
        agent = VLAAgent(description.config.agent, description.spec)
    found = [_read_rollout(path) for path in sorted(folder.glob("rollouts/*/result.json"))]
    validations = [rollout for rollout in found if rollout.is_validation]
    return RunContents(
        label=label,
        color=color,
        description=description,
        num_parameters=sum(parameter.numel() for parameter in agent.parameters()),
        step=max(checkpoint_steps(folder), default=0),
        log=read_log(folder / "log.jsonl"),
        rollouts=(*(r for r in found if not r.is_validation), *reversed(validations)),
    )


def _read_rollout(path: Path) -> Rollout:
    """Read a result; its success rates are counted again, from its episodes."""
    try:
        result = RolloutResult.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise _damaged(path, invalid_field(error)) from error
    count = len(result.episodes)
    distinct = len({(episode.task, episode.seed) for episode in result.episodes})
    if not count or distinct < count:
        raise _damaged(path, f"episodes: expected {count} different seeds, found {distinct}")
    return Rollout(path.parent, result.model_copy(update=success_fields(result.episodes)))


def _damaged(path: Path, what: str) -> RunError:
    return RunError(f"{path}: damaged: {what}; delete {path.parent} or run vla-rollout again")


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
                step, episodes = row.pop("step"), int(row.pop("rollout_episodes", 0))
            except (ValueError, KeyError, TypeError, AttributeError):
                unread.append(number)
                continue
            for name, value in row.items():
                if math.isfinite(value):
                    trials = episodes if name == SUCCESS_RATE and episodes else None
                    log.figures.setdefault(name, []).append(Point(step, float(value), trials))
                else:
                    not_finite += 1
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
