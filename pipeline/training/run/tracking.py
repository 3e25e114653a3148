"""Experiment trackers that a run can report to, in addition to its own log; each is optional.

A resumed run reports to the same place. What a killed run had reported of steps after its
checkpoint is reported again; TensorBoard shows it once, Weights & Biases keeps both. A tracker that
cannot be opened is an error; one that fails later ends with a warning, and the training continues:
every figure is in the run's own log.
"""

import hashlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from pipeline.errors import ConfigError, TrackerError
from policy.errors import MissingExtraError, install_command

MAX_REASON: Final = 300  # characters of a foreign message

logger = logging.getLogger(__name__)


@runtime_checkable  # the test run checks types
class Tracker(Protocol):
    """Takes the figures of steps."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take figures; steps come in order, but for those of watchers."""

    def close(self) -> None:
        """Write what is still in memory."""


class TensorBoard:
    """Event files in `RUN/tensorboard`."""

    def __init__(self, run: Path, configuration: Mapping[str, Any], step: int):
        """Open them; events after `step` are dropped by whoever shows them."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional

        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        if step == 0:
            lines = "\n".join(f"    {key} = {value}" for key, value in configuration.items())
            self._writer.add_text("configuration", lines)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take figures; see `Tracker`."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still in memory; see `Tracker`."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; the place is what WANDB_PROJECT and its like say."""

    def __init__(self, run: Path, configuration: Mapping[str, Any], step: int):
        """Begin, or go on with the one that this folder has begun."""
        import wandb  # noqa: PLC0415 - optional

        identity = (run / "run.json").read_bytes() + bytes(run.resolve())
        self._run: Any = wandb.init(
            id=hashlib.sha256(identity).hexdigest()[:16],
            name=run.resolve().name,
            dir=str(run),
            config=dict(configuration),
            resume="allow" if step else None,
        )
        # Their own step must never fall, and a watcher's figures come late: ours is a figure.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take figures; see `Tracker`."""
        self._run.log({**figures, "step": step})

    def close(self) -> None:
        """Write what is still in memory; see `Tracker`."""
        self._run.finish()


class GuardedTracker:
    """The one door to other people's trackers: one that raises is warned of once, and left."""

    def __init__(self, name: str, tracker: Tracker):
        """Guard a tracker that has just been opened."""
        self._name = name
        self._tracker: Tracker | None = tracker

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take figures; see `Tracker`."""
        with self._guarded():
            if self._tracker is not None:
                self._tracker.log(step, figures)

    def close(self) -> None:
        """Write what is still in memory; see `Tracker`."""
        with self._guarded():
            if self._tracker is not None:
                self._tracker.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a tracker raises whatever it likes
            self._tracker = None
            logger.warning(
                "--track %s: ends here (%s); the training continues, and log.jsonl has every "
                "figure",
                self._name,
                _reason(error),
            )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:MAX_REASON]}"


TRACKERS: Final[dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def check_trackers(names: Sequence[str]) -> None:
    """Find out before a run begins whether its trackers can be opened.

    Raises:
        ConfigError: there is no tracker of that name.
        MissingExtraError: its library is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"tracker {name!r}, want one of {', '.join(TRACKERS)}")
        try:
            is_there = importlib.util.find_spec(name) is not None
        except ValueError:  # what stands for a module that must not be imported
            is_there = False
        if not is_there:
            raise MissingExtraError(
                f"--track {name}: its library is not installed; {install_command(name)}"
            )


def open_trackers(
    names: Sequence[str], run: Path, configuration: Mapping[str, Any], step: int
) -> list[Tracker]:
    """Open trackers by name.

    Args:
        names: out of `TRACKERS`.
        run: folder of the run.
        configuration: of the run, flat: `optimizer.learning_rate`.
        step: how far the run has come; what was told of later steps is told again.

    Raises:
        ConfigError, MissingExtraError: as `check_trackers` raises them.
        TrackerError: one cannot be opened.
    """
    check_trackers(names)
    opened: list[Tracker] = []
    for name in names:
        try:
            opened.append(GuardedTracker(name, TRACKERS[name](run, configuration, step)))
        except Exception as error:  # a tracker raises whatever it likes
            for tracker in opened:
                tracker.close()
            raise TrackerError(
                f"--track {name}: expected it to open, found {_reason(error)}; log in, work "
                "offline (for wandb: WANDB_MODE=offline), or leave --track out"
            ) from error
    return opened


def flat_configuration(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as `group.field` names."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flat_configuration(value, f"{name}.")
        else:
            flat[name] = value
    return flat
