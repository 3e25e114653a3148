"""The figures of a run: its log, one JSON object per line, and optional experiment trackers.

A resumed run reports to the same run of the tracker. Figures that a killed run had reported of
steps after its checkpoint are reported again; TensorBoard shows them once, Weights & Biases keeps
both. A tracker that cannot be opened is an error; one that fails later ends with a warning, and the
training continues: every figure is in the run's own log.
"""

import hashlib
import importlib.util
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TextIO, runtime_checkable

from pipeline.errors import ConfigError, TrackerError
from pipeline.storage.local import write_atomically
from policy.errors import MissingExtraError, install_command, one_line

logger = logging.getLogger(__name__)


@runtime_checkable  # the test run checks types
class Tracker(Protocol):
    """Shows the figures of steps."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Write figures; steps are in order, except those of watchers."""

    def close(self) -> None:
        """Write figures that are still in memory."""


class TensorBoard:
    """Event files in `RUN/tensorboard`."""

    def __init__(self, run: Path, configuration: Mapping[str, Any], step: int):
        """Open them; TensorBoard then hides events after `step`."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional

        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        if step == 0:
            lines = "\n".join(f"    {key} = {value}" for key, value in configuration.items())
            self._writer.add_text("configuration", lines)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, in the project that WANDB_PROJECT names."""

    def __init__(self, run: Path, configuration: Mapping[str, Any], step: int):
        """Begin, or resume the one that this folder has begun."""
        import wandb  # noqa: PLC0415 - optional

        identity = (run / "run.json").read_bytes() + bytes(run.resolve())
        self._run: Any = wandb.init(
            id=hashlib.sha256(identity).hexdigest()[:16],
            name=run.resolve().name,
            dir=str(run),
            config=dict(configuration),
            resume="allow" if step else None,
        )
        # wandb's own step must never decrease, and a watcher's figures are late: ours is a figure.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({**figures, "step": step})

    def close(self) -> None:
        self._run.finish()


class GuardedTracker:
    """A tracker that is dropped with a warning if it raises."""

    def __init__(self, name: str, tracker: Tracker):
        self._name = name
        self._tracker: Tracker | None = tracker

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._guarded(lambda tracker: tracker.log(step, figures))

    def close(self) -> None:
        self._guarded(lambda tracker: tracker.close())

    def _guarded(self, call: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            call(self._tracker)
        except Exception as error:  # noqa: BLE001 - a tracker may raise anything
            self._tracker = None
            logger.warning(
                "--track %s: tracking stopped (%s); training continues, and log.jsonl contains all "
                "metrics",
                self._name,
                _reason(error),
            )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


TRACKERS: Final[dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse unknown trackers (ConfigError) and those without a library (MissingExtraError)."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"--track: expected one of {', '.join(TRACKERS)}, found {name!r}")
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(
                f"--track {name}: the library is not installed; {install_command(name)}"
            )


def open_trackers(
    names: Sequence[str], run: Path, configuration: Mapping[str, Any], step: int
) -> list[Tracker]:
    """Open trackers for a run at `step`, or raise TrackerError; see `check_trackers`."""
    check_trackers(names)
    opened: list[Tracker] = []
    for name in names:
        try:
            opened.append(GuardedTracker(name, TRACKERS[name](run, configuration, step)))
        except Exception as error:  # a tracker may raise anything
            for tracker in opened:
                tracker.close()
            raise TrackerError(
                f"--track {name}: cannot start the tracker ({_reason(error)}); log in, work "
                "offline (for wandb: WANDB_MODE=offline), or remove --track"
            ) from error
    return opened


def flat_configuration(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as `group.field`; a list of plain values stays one field."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        inner = value
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            inner = {str(index): item for index, item in enumerate(value)}
        is_group = isinstance(inner, Mapping) and inner
        flat |= flat_configuration(inner, f"{prefix}{key}.") if is_group else {prefix + key: value}
    return flat


class RunLog:
    """The open log of a run; a context manager."""

    def __init__(self, run: Path, step: int, trackers: Sequence[Tracker] = ()):
        """Open the log and drop its lines after `step`, which a resumed run writes again."""
        self._path = run / "log.jsonl"
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
