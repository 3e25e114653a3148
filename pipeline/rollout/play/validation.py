"""Rolls checkpoints out during training, one at a time, in a process of low priority.

The process reads hard links of the checkpoint, so that the training may delete its own.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from pipeline.errors import ConfigError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.processes import start_process
from pipeline.rollout.envs.registry import envs_of, make_env
from pipeline.rollout.play.journal import RESULT
from pipeline.rollout.play.loop import RolloutConfig, roll_out
from pipeline.rollout.play.result import RolloutResult
from pipeline.storage.location import Location
from pipeline.training.config import TrainConfig
from pipeline.training.trainer import TrainingWatcher
from policy.errors import VlaError

NICENESS: Final = 10  # of the process: the training goes first
OUTPUT: Final = "output.txt"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Rollout:
    """A running rollout of a checkpoint."""

    step: int
    folder: Path
    """With the linked run and the process's output."""
    process: BaseProcess


class ValidationConfig(RolloutConfig):
    """What to roll out during a training."""

    episodes: int = Field(default=5, ge=1)
    """Episodes of each rollout."""
    videos: Literal["all", "failed", "none"] | Annotated[int, Field(ge=0)] = "none"
    """See `RolloutConfig`."""
    every: int = Field(default=5_000, ge=1)
    """Optimizer steps between two rollouts; a multiple of `checkpoint_every`."""


class RolloutValidation(TrainingWatcher):
    """To be closed."""

    def __init__(self, config: ValidationConfig):
        """Prepare; `run` and `out` of the configuration do not count."""
        self._config = config
        self._current: _Rollout | None = None
        self._waiting: tuple[int, Path] | None = None  # a step and its linked run
        self._ready: list[tuple[int, Mapping[str, float]]] = []
        self.failures: list[str] = []
        """A line for each rollout that did not end well."""

    def close(self) -> None:
        """End a process that still runs, and remove its files."""
        if self._waiting is not None:
            shutil.rmtree(self._waiting[1].parent, ignore_errors=True)
        if self._current is not None:
            self._current.process.kill()
            self._current.process.join()
            shutil.rmtree(self._current.folder, ignore_errors=True)

    def checkpoint_written(self, run: Path, step: int) -> None:
        """Roll it out, now or after the running one; see `TrainingWatcher`.

        It replaces one that is waiting, with a warning in the log.
        """
        if step % self._config.every:
            return
        if self._waiting is not None:
            skipped, linked = self._waiting
            shutil.rmtree(linked.parent, ignore_errors=True)
            logger.warning(
                "%s: the rollout of step %d was skipped, because an earlier one still runs; "
                "increase rollout.every, or reduce rollout.episodes",
                run,
                skipped,
            )
        self._waiting = step, _link_run(run, step)
        self._advance()

    def figures(self) -> list[tuple[int, Mapping[str, float]]]:
        """Return the figures of finished rollouts; see `TrainingWatcher`."""
        self._advance()
        ready, self._ready = self._ready, []
        return ready

    def finish(self) -> None:
        """Wait for the rollouts that still run; see `TrainingWatcher`."""
        while self._current is not None:
            self._current.process.join()
            self._advance()

    def _advance(self) -> None:
        """Take the result of a rollout that has ended, and begin the one that waits."""
        if self._current is not None:
            if self._current.process.is_alive():
                return
            self._take_result(self._current)
            self._current = None
        if self._waiting is not None:
            (step, linked), self._waiting = self._waiting, None
            changes = {"run": linked, "out": linked.parents[1] / f"step_{step:08d}"}
            config = self._config.model_copy(update=changes)
            (output := linked.parent / OUTPUT).touch()  # a process may die before it writes
            process = start_process(_roll_out, (config, output))
            self._current = _Rollout(step, linked.parent, process)

    def _take_result(self, rollout: _Rollout) -> None:
        output = (rollout.folder / OUTPUT).read_text(errors="replace").strip().splitlines()
        shutil.rmtree(rollout.folder, ignore_errors=True)
        if code := rollout.process.exitcode:
            reason = output[-1] if output else f"exit code {code}"
            self.failures.append(f"step {rollout.step} was not rolled out: {reason}")
            logger.error("%s; training continues", self.failures[-1])
            return
        path = rollout.folder.parent / f"step_{rollout.step:08d}" / RESULT
        result = RolloutResult.model_validate_json(path.read_bytes())
        episodes = float(len(result.episodes))
        figures = {"rollout_success": result.success_rate, "rollout_episodes": episodes}
        self._ready.append((rollout.step, figures))


def validate_by_rollouts(
    rollout: ValidationConfig, store: Location, config: TrainConfig
) -> RolloutValidation:
    """Check what would otherwise fail hours later, and prepare a training's rollouts.

    The views of the training's `store` are rendered.

    Raises:
        ConfigError: no checkpoint is written at these steps.
        StoreError: the store cannot be opened.
        EnvError: the environment cannot be built.
    """
    if rollout.every % config.checkpoint_every or rollout.every > config.steps:
        raise ConfigError(
            f"rollout.every: expected a multiple of checkpoint_every={config.checkpoint_every}, at "
            f"most steps={config.steps}, found {rollout.every}; a rollout needs a checkpoint"
        )
    env = envs_of(rollout.envs)[0]
    make_env(env, FeatureStore.open(store).attributes.view_names, rollout.render_size).close()
    return RolloutValidation(rollout)


def _roll_out(config: RolloutConfig, output: Path) -> None:
    """Roll out in a process of its own, whose output goes to a file."""
    os.setsid()  # Ctrl-C goes to the training, which ends this process
    os.nice(NICENESS)
    with output.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        roll_out(config)
    except VlaError as error:
        raise SystemExit(" ".join(str(error).split())) from error


def _link_run(run: Path, step: int) -> Path:
    """Hard-link a run with one of its checkpoints below the run, and return the new folder."""
    linked = run / "rollouts" / f".step_{step:08d}" / run.resolve().name
    shutil.rmtree(linked.parent, ignore_errors=True)
    linked.mkdir(parents=True)
    for path in run.iterdir():
        if path.is_file() and path.suffix in (".json", ".safetensors"):
            os.link(path, linked / path.name)
    name = f"checkpoints/step_{step:08d}"
    shutil.copytree(run / name, linked / name, copy_function=os.link)
    return linked
