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

from pydantic import Field, ValidationError

from pipeline.errors import ConfigError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.processes import start_process
from pipeline.rollout.envs.registry import envs_of, make_env
from pipeline.rollout.play.loop import RolloutConfig, roll_out
from pipeline.rollout.play.result import RolloutResult
from pipeline.storage.location import Location
from pipeline.training.config import TrainConfig
from pipeline.training.trainer import TrainingWatcher
from policy.errors import VlaError

NICENESS: Final = 10  # of the process: the training goes first
OUTPUT: Final = "output.txt"
KILL_AFTER_S: Final = 10.0  # seconds between SIGTERM and SIGKILL

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Rollout:
    """A running rollout of a checkpoint."""

    step: int
    out: Path
    linked: Path
    """Folder with the linked run and the process's output."""
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
        self._waiting: tuple[Path, int] | None = None
        self._ready: list[tuple[int, Mapping[str, float]]] = []
        self.failures: list[str] = []
        """A line for each rollout that did not end well."""

    def close(self) -> None:
        """End a process that still runs, and remove its files."""
        if self._waiting is not None:
            shutil.rmtree(self._waiting[0].parent, ignore_errors=True)
        if self._current is not None:
            self._current.process.terminate()
            self._current.process.join(timeout=KILL_AFTER_S)
            self._current.process.kill()
            self._current.process.join()
            shutil.rmtree(self._current.linked, ignore_errors=True)

    def checkpoint_written(self, run: Path, step: int) -> None:
        """Roll it out, now or after the running one; see `TrainingWatcher`.

        It replaces one that is waiting, with a warning in the log.
        """
        if step % self._config.every:
            return
        if self._waiting is not None:
            left, skipped = self._waiting
            shutil.rmtree(left.parent, ignore_errors=True)
            logger.warning(
                "%s: the rollout of step %d was skipped, because that of step %d was still "
                "running; increase rollout.every, or reduce rollout.episodes",
                run,
                skipped,
                step,
            )
        self._waiting = _link_run(run, step), step
        if self._current is None:
            self._start()

    def figures(self) -> list[tuple[int, Mapping[str, float]]]:
        """Return the figures of finished rollouts; see `TrainingWatcher`."""
        if self._current is not None and not self._current.process.is_alive():
            self._take_result(self._current)
            self._current = None
            self._start()
        ready, self._ready = self._ready, []
        return ready

    def finish(self) -> None:
        """Wait for the rollouts that still run; see `TrainingWatcher`."""
        found = []
        while self._current is not None:
            self._current.process.join()
            found += self.figures()
        self._ready = found

    def _start(self) -> None:
        if self._waiting is None:
            return
        (linked, step), self._waiting = self._waiting, None
        out = linked.parent.parent / f"step_{step:08d}"
        config = self._config.model_copy(update={"run": linked, "out": out})
        process = start_process(_roll_out, (config, linked.parent / OUTPUT))
        self._current = _Rollout(step, out, linked.parent, process)

    def _take_result(self, rollout: _Rollout) -> None:
        output = (rollout.linked / OUTPUT).read_text(errors="replace").strip().splitlines()
        shutil.rmtree(rollout.linked, ignore_errors=True)
        path = rollout.out / "result.json"
        try:
            if rollout.process.exitcode:
                raise ValueError(output[-1] if output else f"exit code {rollout.process.exitcode}")
            result = RolloutResult.model_validate_json(path.read_bytes())
        except (OSError, ValueError, ValidationError) as error:
            reason = " ".join(str(error).split())
            failure = f"step {rollout.step} was not rolled out: {reason}"
            self.failures.append(failure)
            logger.error("%s; training continues", failure)
            return
        figures = {
            "rollout_success": result.success_rate,
            "rollout_episodes": float(len(result.episodes)),
        }
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
    if rollout.every % config.checkpoint_every:
        raise ConfigError(
            f"rollout.every: expected a multiple of checkpoint_every={config.checkpoint_every}, "
            f"found {rollout.every}; a rollout needs a checkpoint"
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
    rollouts = run / "rollouts"
    linked = rollouts / f".step_{step:08d}" / run.resolve().name
    shutil.rmtree(linked.parent, ignore_errors=True)
    linked.mkdir(parents=True)
    for path in run.iterdir():
        if path.is_file() and path.suffix in (".json", ".safetensors"):
            os.link(path, linked / path.name)
    name = f"checkpoints/step_{step:08d}"
    shutil.copytree(run / name, linked / name, copy_function=os.link)
    return linked
