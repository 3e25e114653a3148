"""Rolls checkpoints out while their training goes on, one at a time, in a process of its own.

Knows runs, commands and results; nothing about simulators. The process gets the checkpoint under
another name, as hard links, so that the training may delete its own; it runs at low priority.
"""

import contextlib
import logging
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from pydantic import ValidationError

from pipeline.errors import ConfigError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.rollout.envs.registry import make_env
from pipeline.rollout.play.result import RolloutResult
from pipeline.storage.location import Location
from pipeline.training.config import TrainConfig

LOW_PRIORITY: Final = ("/usr/bin/env", "nice", "-n", "10")
KILL_AFTER_S: Final = 10.0  # seconds between asking a process to end and ending it

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Rollout:
    """A checkpoint that is being rolled out."""

    step: int
    out: Path
    """Where its result will be."""
    linked: Path
    """Folder that holds the linked run, and what the process says."""
    process: subprocess.Popen[bytes]


class RolloutValidation:
    """A `TrainingWatcher`; leaving its context ends the process that may still run."""

    def __init__(self, command: Sequence[str], *, every: int):
        """Prepare; nothing runs yet.

        Args:
            command: rolls a run out; gets the run's folder and `--out` with the result's.
            every: optimiser steps between two rollouts; a checkpoint whose step is no multiple of
                it is left alone.
        """
        self._command = tuple(command)
        self._every = every
        self._current: _Rollout | None = None
        self._waiting: tuple[Path, int] | None = None
        self._ready: list[tuple[int, Mapping[str, float]]] = []
        self.failures: list[str] = []
        """A line for each rollout that did not end well."""

    def __enter__(self) -> "RolloutValidation":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._waiting is not None:
            shutil.rmtree(self._waiting[0].parent, ignore_errors=True)
        if self._current is not None:
            self._current.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._current.process.wait(timeout=KILL_AFTER_S)
            self._current.process.kill()
            self._current.process.wait()
            shutil.rmtree(self._current.linked, ignore_errors=True)

    def checkpoint_written(self, run: Path, step: int) -> None:
        """Roll it out, now or when the one before is done; see `TrainingWatcher`.

        One that waits already gives way to this one, and the log says so.
        """
        if step % self._every:
            return
        if self._waiting is not None:
            left, skipped = self._waiting
            shutil.rmtree(left.parent, ignore_errors=True)
            logger.warning(
                "%s: step %d is not rolled out: the rollout before it still ran when step %d was "
                "there; roll out less often, or fewer episodes",
                run,
                skipped,
                step,
            )
        self._waiting = _link_run(run, step), step
        if self._current is None:
            self._start()

    def figures(self) -> list[tuple[int, Mapping[str, float]]]:
        """Return what has become ready; see `TrainingWatcher`."""
        if self._current is not None and self._current.process.poll() is not None:
            self._take_result(self._current)
            self._current = None
            self._start()
        ready, self._ready = self._ready, []
        return ready

    def finish(self) -> None:
        """Wait for what is still under way; see `TrainingWatcher`."""
        found = []
        while self._current is not None:
            self._current.process.wait()
            found += self.figures()
        self._ready = found

    def _start(self) -> None:
        if self._waiting is None:
            return
        (linked, step), self._waiting = self._waiting, None
        out = linked.parent.parent / f"step_{step:08d}"
        with (linked.parent / "said.txt").open("wb") as said:
            process = subprocess.Popen(  # noqa: S603 - the caller's own command
                [*LOW_PRIORITY, *self._command, str(linked), "--out", str(out)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,  # Ctrl-C is the training's; it ends this process itself
            )
        self._current = _Rollout(step, out, linked.parent, process)

    def _take_result(self, rollout: _Rollout) -> None:
        said = (rollout.linked / "said.txt").read_text(errors="replace").strip().splitlines()
        shutil.rmtree(rollout.linked, ignore_errors=True)
        path = rollout.out / "result.json"
        try:
            if rollout.process.returncode:
                raise ValueError(said[-1] if said else f"exit code {rollout.process.returncode}")
            result = RolloutResult.model_validate_json(path.read_bytes())
        except (OSError, ValueError, ValidationError) as error:
            reason = " ".join(str(error).split())
            failure = f"step {rollout.step} was not rolled out: {reason}"
            self.failures.append(failure)
            logger.error("%s; training goes on", failure)
            return
        figures = {
            "rollout_success": result.success_rate,
            "rollout_episodes": float(len(result.episodes)),
        }
        self._ready.append((rollout.step, figures))


def validate_by_rollouts(
    command: Sequence[str],
    *,
    env: str,
    every: int,
    episodes: int,
    store: Location,
    config: TrainConfig,
    encoder: str | None = None,
) -> RolloutValidation:
    """Check what a training would otherwise learn hours later, and prepare its rollouts.

    Args:
        command: `vla-rollout`, without arguments.
        env: where to roll out.
        every: optimiser steps between two rollouts.
        episodes: in each.
        store: what is trained on; its views are rendered.
        config: of the training.
        encoder: where the encoder lies; None takes the name in the store.

    Raises:
        ConfigError: no checkpoint is written at these steps.
        StoreError: the store cannot be opened.
        EnvError: the environment cannot be built.
    """
    if every % config.checkpoint_every:
        raise ConfigError(
            f"rollouts every {every} steps, checkpoints every {config.checkpoint_every}: want a "
            f"multiple, because a rollout takes a checkpoint"
        )
    make_env(env, FeatureStore.open(store).attributes.view_names).close()
    words = ["--env", env, "--episodes", str(episodes), "--videos", "none"]
    if encoder is not None:
        words += ["--encoder", encoder]
    return RolloutValidation([*command, *words], every=every)


def _link_run(run: Path, step: int) -> Path:
    """Give a run with one checkpoint a second name, below the run; return it."""
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
