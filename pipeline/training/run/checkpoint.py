"""Checkpoints of a run in safetensors and JSON. No pickle anywhere.

Below the run's folder:

    checkpoints/step_00000500/            whole or absent: written under another name, then renamed
        agent.safetensors                 the weights being trained
        average.safetensors               their moving average: the ones to roll out
        optimizer.safetensors             AdamW's state
        README.md                         the model card, for people
        checkpoint.json                   step, validation error, sha256 of the files of tensors
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import RunError
from pipeline.storage.local import sync_file, write_atomically, write_json
from pipeline.training.run.folder import run_hash

TENSOR_FILES: Final = ("agent", "average", "optimizer")


@dataclass(frozen=True)
class Checkpoint:
    """A training state after `step` optimizer steps."""

    step: int
    agent: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def write_checkpoint(
    run: Path, checkpoint: Checkpoint, *, card: str, keep: int, val_error: float | None = None
) -> None:
    """Write a checkpoint whole, with its model card in Markdown, then delete older ones.

    The latest `keep` and the one of the smallest `val_error` stay. After an OSError (the disk is
    full or not writable), earlier checkpoints are untouched.
    """
    folder = _folder(run, checkpoint.step)
    for cut_off in folder.parent.glob(".step_*.partial"):  # by a kill, of this step or another
        shutil.rmtree(cut_off)
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True)
    try:
        hashes = {}
        for name in TENSOR_FILES:
            tensors = {key: value.contiguous() for key, value in getattr(checkpoint, name).items()}
            content = save(tensors)
            write_atomically(partial / f"{name}.safetensors", content)
            hashes[name] = hashlib.sha256(content).hexdigest()
        write_atomically(partial / "README.md", card.encode())
        hashes["run"] = run_hash(run)
        mark = {"step": checkpoint.step, "val_error": val_error, "sha256": hashes}
        write_json(partial / "checkpoint.json", mark)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_file(folder.parent)
    best = _best_step(run)
    for step in checkpoint_steps(run)[:-keep]:
        if step != best:
            shutil.rmtree(_folder(run, step))


def checkpoint_steps(run: Path) -> list[int]:
    """Return the steps of the run's checkpoints, in order."""
    marks = (run / "checkpoints").glob("step_*/checkpoint.json")
    names = (mark.parent.name.removeprefix("step_") for mark in marks)
    return sorted(int(name) for name in names if name.isdecimal())


def read_checkpoint(run: Path, step: int) -> Checkpoint:
    """Read a checkpoint, each file checked against its hash (RunError: absent or damaged)."""
    agent, average, optimizer = (_read_tensors(run, step, name) for name in TENSOR_FILES)
    return Checkpoint(step=step, agent=agent, average=average, optimizer=optimizer)


def resolve_step(run: Path, which: str) -> int:
    """Return the step of a checkpoint: `latest`, `best` or a step (RunError: there is none)."""
    steps = checkpoint_steps(run)
    if not steps:
        raise RunError(
            f"{run}: expected a checkpoint, found none; wait until vla-train has written the "
            f"first one"
        )
    if which == "latest":
        return steps[-1]
    if which == "best":
        best = _best_step(run)
        if best is None:
            raise RunError(
                f"{run}: the best checkpoint is unknown, because none was evaluated on validation "
                f"episodes; use `latest` or one of the steps {steps}"
            )
        return best
    if not which.isdecimal() or int(which) not in steps:
        raise RunError(
            f"{run}: checkpoint: expected latest, best or one of {steps}, found {which!r}"
        )
    return int(which)


def read_average(run: Path, step: int | None = None) -> tuple[int, dict[str, Tensor]]:
    """Read the averaged weights of a checkpoint and its step (RunError: absent or damaged)."""
    found = resolve_step(run, "latest") if step is None else step
    return found, _read_tensors(run, found, "average")


def _best_step(run: Path) -> int | None:
    """Return the step with the smallest error on validation episodes; None if none was measured."""
    errors = {}
    for step in checkpoint_steps(run):
        path = _folder(run, step) / "checkpoint.json"
        try:
            error = json.loads(path.read_text())["val_error"]
            if error is not None:
                errors[step] = float(error)
        except (FileNotFoundError, ValueError, KeyError, TypeError) as reason:
            raise RunError(f"{path}: cannot be read ({reason}); delete {path.parent}") from reason
    return min(errors, key=errors.__getitem__, default=None)


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def _read_tensors(run: Path, step: int, name: str) -> dict[str, Tensor]:
    folder = _folder(run, step)
    path = folder / f"{name}.safetensors"
    try:
        expected = json.loads((folder / "checkpoint.json").read_text())["sha256"]
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != expected[name]:
            raise RunError(
                f"{path}: damaged, its checksum is not that in checkpoint.json; delete {folder}"
            )
        if expected["run"] != run_hash(run):
            raise RunError(f"{folder}: belongs to another run than {run}/run.json; delete it")
        return load(content)
    except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error}); delete {folder}") from error
