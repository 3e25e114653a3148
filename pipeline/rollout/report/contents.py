"""The data of a report: runs with their logs and rollouts, read and checked.

The folder of a run:

    run.json, log.jsonl, checkpoints/     see pipeline/training
    rollouts/NAME/result.json             a rollout; NAME is `step_00001000` where the trainer
                                          rolled out by itself
    rollouts/NAME/videos/seed_SEED.mp4    an episode's video, H.264
    rollouts/NAME/paths/seed_SEED.png     its first frame with the end-effector's path
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from pydantic import ValidationError

from pipeline.errors import RunError
from pipeline.rollout.play.result import EpisodeResult, RolloutResult, SuccessRate, success_fields
from pipeline.rollout.report.training_log import Point, TrainingLog, read_log
from pipeline.training.run.checkpoint import checkpoint_steps
from pipeline.training.run.folder import RunDescription, read_run
from policy.agent import VLAAgent
from policy.errors import invalid_field

VALIDATION_NAME: Final = re.compile(r"step_\d{8}")
VALIDATION_ERROR: Final = "val_error"  # its name in log.jsonl
NUM_COLORS: Final = 8  # of the style sheet
RATE_ROUNDING: Final = 1e-6  # of a rate or interval that was written as decimal digits

EpisodeKey = tuple[str, int]  # environment, in a rollout of several, and seed


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

    def video(self, episode: EpisodeResult) -> Path:
        """Return the path of an episode's video, which may not exist."""
        return (self.folder / "videos" / episode.file).with_suffix(".mp4")

    def path_image(self, episode: EpisodeResult) -> Path:
        """Return the path of an episode's path image, which may not exist."""
        return (self.folder / "paths" / episode.file).with_suffix(".png")


@dataclass(frozen=True)
class RunContents:
    """One run, finished or not."""

    folder: Path
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
    longest = max(len(folder.parts) for folder in folders)
    for depth in range(1, longest):
        labels = ["/".join(folder.parts[1:][-depth:]) for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
    return [str(folder) for folder in folders]


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
        folder=folder,
        label=label,
        color=color,
        description=description,
        num_parameters=sum(parameter.numel() for parameter in agent.parameters()),
        step=max(checkpoint_steps(folder), default=0),
        log=read_log(folder / "log.jsonl"),
        rollouts=(*(r for r in found if not r.is_validation), *reversed(validations)),
    )


def _read_rollout(path: Path) -> Rollout:
    try:
        result = RolloutResult.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise _damaged(path, invalid_field(error)) from error
    rollout = Rollout(path.parent, result)
    count, distinct = len(result.episodes), len(rollout.successes)
    if not count or distinct != count:
        raise _damaged(path, f"episodes: expected {count} different seeds, found {distinct}")
    stated = _rates(result)
    expected = _rates(result.model_copy(update=success_fields(result.episodes)))
    if len(stated) != len(expected) or not np.allclose(stated, expected, 0, RATE_ROUNDING):
        raise _damaged(
            path, f"success_rate: expected {expected} as in its episodes, found {stated}"
        )
    return rollout


def _rates(result: RolloutResult) -> list[float]:
    """Return every success rate of a result, with its interval."""
    rates: tuple[RolloutResult | SuccessRate, ...] = (result, *result.tasks, *result.suites)
    return [number for rate in rates for number in (rate.success_rate, *rate.success_interval)]


def _damaged(path: Path, what: str) -> RunError:
    return RunError(f"{path}: damaged: {what}; delete {path.parent} or run vla-rollout again")
