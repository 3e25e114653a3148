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
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

from pipeline.errors import ConfigError, TrackerError
from pipeline.storage.local import write_atomically
from policy.errors import MissingExtraError, install_command, one_line

logger = logging.getLogger(__name__)


class Tracker(NamedTuple):
    """Shows the figures of steps."""

    log: Callable[[int, Mapping[str, float]], None]
    """Write the figures of a step; steps are in order, except those of watchers."""
    close: Callable[[], None]
    """Write figures that are still in memory."""


def open_tensorboard(run: Path, configuration: Mapping[str, Any], step: int) -> Tracker:
    """Open event files in `RUN/tensorboard`; TensorBoard then hides events after `step`."""
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional

    writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
    if step == 0:
        lines = "\n".join(f"    {key} = {value}" for key, value in configuration.items())
        writer.add_text("configuration", lines)

    def log(step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)

    return Tracker(log, writer.close)


def open_wandb(run: Path, configuration: Mapping[str, Any], step: int) -> Tracker:
    """Begin a run of Weights & Biases in the project WANDB_PROJECT, or resume this folder's."""
    import wandb  # noqa: PLC0415 - optional

    identity = (run / "run.json").read_bytes() + bytes(run.resolve())
    shown: Any = wandb.init(
        id=hashlib.sha256(identity).hexdigest()[:16],
        name=run.resolve().name,
        dir=str(run),
        config=dict(configuration),
        resume="allow" if step else None,
    )
    # wandb's own step must never decrease, and a watcher's figures are late: ours is a figure.
    shown.define_metric("*", step_metric="step")
    return Tracker(lambda step, figures: shown.log({**figures, "step": step}), shown.finish)


TRACKERS: Final[dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]]] = {
    "tensorboard": open_tensorboard,
    "wandb": open_wandb,
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
) -> dict[str, Tracker]:
    """Open trackers, by name, for a run at `step` (TrackerError: one cannot be opened)."""
    opened: dict[str, Tracker] = {}
    for name in names:
        try:
            opened[name] = TRACKERS[name](run, configuration, step)
        except Exception as error:  # a tracker may raise anything
            for tracker in opened.values():
                tracker.close()
            raise TrackerError(
                f"--track {name}: cannot start the tracker ({_reason(error)}); log in, work "
                "offline (for wandb: WANDB_MODE=offline), or remove --track"
            ) from error
    return opened


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


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
    """The open log of a run; to be closed."""

    def __init__(self, run: Path, step: int, trackers: Mapping[str, Tracker]):
        """Open the log and drop its lines after `step`, which a resumed run writes again."""
        self._trackers = dict(trackers)
        self._clock = time.monotonic(), step
        path = run / "log.jsonl"
        _cut_log(path, step)
        self._file: TextIO = path.open("a")

    def close(self) -> None:
        """Close the log and the trackers."""
        self._file.close()
        self._track(lambda tracker: tracker.close())

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures of a step."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        self._track(lambda tracker: tracker.log(step, figures))

    def _track(self, call: Callable[[Tracker], None]) -> None:
        """Call every tracker; one that raises is dropped with a warning."""
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # noqa: BLE001 - a tracker may raise anything
                del self._trackers[name]
                logger.warning(
                    "--track %s: tracking stopped (%s); training continues, and log.jsonl "
                    "contains all metrics",
                    name,
                    _reason(error),
                )

    def speed(self, step: int) -> float:
        """Return the optimizer steps per second since the last call."""
        now = time.monotonic()
        started, first = self._clock
        self._clock = now, step
        return (step - first) / max(now - started, 1e-9)


def _cut_log(path: Path, step: int) -> None:
    kept = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with suppress(ValueError, KeyError, TypeError):  # a line that a crash cut short
            if json.loads(line)["step"] <= step:
                kept.append(f"{line}\n")
    write_atomically(path, "".join(kept).encode())
