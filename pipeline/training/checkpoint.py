"""A run on the disk: its description, and checkpoints in safetensors and JSON. No pickle anywhere.

Knows files and tensors; nothing about the training loop. Layout below the run's folder:

    run.json                              configuration, data and encoder; written when a run starts
    probe.safetensors                     frames and their features, to know the encoder by
    log.jsonl                             figures, one JSON object a line
    checkpoints/step_00000500/            whole or absent: written under another name, then renamed
        agent.safetensors                 the weights being trained
        average.safetensors               their moving average: the ones to roll out
        optimizer.safetensors             AdamW's state
        README.md                         the model card, for people
        checkpoint.json                   step, and the sha256 of each file
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import RunError
from pipeline.features.probe import Probe
from pipeline.files import sync_folder, write_atomically, write_json
from pipeline.training.config import TrainConfig
from policy.engine import EngineRecord
from policy.spec import AgentSpec, EncoderIdentity

FORMAT_VERSION: Final = 2  # 1 carried no probe
PROBE_FILE: Final = "probe.safetensors"
TENSOR_FILES: Final = ("agent", "average", "optimizer")


class DataIdentity(BaseModel):
    """Which data a run was trained on, and which encoder saw it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The dataset's name."""
    store_digest: str
    """sha256 of the store's content."""
    fps: float
    """Control steps a second."""
    encoder: EncoderIdentity
    """Which encoder made the features."""
    probe_digest: str
    """`Probe.digest` of the store's probe, which the run carries on."""
    manifest: dict[str, Any]
    """The dataset's manifest."""


class RunDescription(BaseModel):
    """What a run is: enough to continue it and to roll it out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    """Raised when older code could no longer read the run."""
    config: TrainConfig
    """Everything that decides the weights, given the data."""
    spec: AgentSpec
    """What the data decides about the agent."""
    data: DataIdentity
    """The data, and its encoder."""


@dataclass(frozen=True)
class Checkpoint:
    """A training state after `step` optimiser steps."""

    step: int
    agent: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def write_run(run: Path, description: RunDescription, probe: Probe) -> None:
    """Write a new run's probe, then its description.

    Raises:
        OSError: the folder is not writable.
    """
    run.mkdir(parents=True, exist_ok=True)
    tensors = {
        "frames": torch.from_numpy(np.ascontiguousarray(probe.frames)),
        "features": torch.from_numpy(np.ascontiguousarray(probe.features)),
    }
    words = {"engine": probe.engine.model_dump_json(), "tolerance": repr(probe.tolerance)}
    write_atomically(run / PROBE_FILE, save(tensors, metadata=words))
    write_json(run / "run.json", description.model_dump(mode="json"))


def read_probe(run: Path, description: RunDescription) -> Probe:
    """Read the probe that a run carries.

    Raises:
        RunError: it is absent, damaged, or not the one that the run started with.
    """
    path = run / PROBE_FILE
    try:
        with safe_open(path, framework="numpy") as file:
            words = file.metadata()
            probe = Probe(
                frames=file.get_tensor("frames"),
                features=file.get_tensor("features"),
                engine=EngineRecord.model_validate_json(words["engine"]),
                tolerance=float(words["tolerance"]),
            )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(
            f"{path}: cannot be read ({error}); restore it from a copy, or train anew"
        ) from error
    if probe.digest() != description.data.probe_digest:
        raise RunError(
            f"{path}: is not the probe that run.json names ({description.data.probe_digest[:12]}); "
            f"restore it from a copy, or train anew"
        )
    return probe


def read_run(run: Path) -> RunDescription:
    """Read a run's description.

    Raises:
        RunError: `run` holds none, or one that this program does not read.
    """
    path = run / "run.json"
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(f"{run}: no training run here; make one with vla-train") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise RunError(
            f"{path}: format version {version}, this program reads {FORMAT_VERSION}; use the "
            f"program that trained it"
        )
    try:
        return RunDescription.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise RunError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def write_checkpoint(run: Path, checkpoint: Checkpoint, *, card: str, keep: int) -> None:
    """Write a checkpoint whole, with its model card, then delete all but the latest `keep`.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    folder = _folder(run, checkpoint.step)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        hashes = {}
        for name in TENSOR_FILES:
            tensors = {key: value.contiguous() for key, value in getattr(checkpoint, name).items()}
            content = save(tensors)
            write_atomically(partial / f"{name}.safetensors", content)
            hashes[name] = hashlib.sha256(content).hexdigest()
        write_atomically(partial / "README.md", card.encode())
        hashes["run"] = _run_hash(run)
        write_json(partial / "checkpoint.json", {"step": checkpoint.step, "sha256": hashes})
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(folder.parent)
    for step in checkpoint_steps(run)[:-keep]:
        shutil.rmtree(_folder(run, step))


def checkpoint_steps(run: Path) -> list[int]:
    """Return the steps of the run's checkpoints, in order."""
    marks = (run / "checkpoints").glob("step_*/checkpoint.json")
    names = (mark.parent.name.removeprefix("step_") for mark in marks)
    return sorted(int(name) for name in names if name.isdecimal())


def read_checkpoint(run: Path, step: int) -> Checkpoint:
    """Read a checkpoint, each file checked against its hash.

    Raises:
        RunError: the checkpoint is absent or damaged; the message names the file.
    """
    agent, average, optimizer = (_read_tensors(run, step, name) for name in TENSOR_FILES)
    return Checkpoint(step=step, agent=agent, average=average, optimizer=optimizer)


def read_average(run: Path) -> tuple[int, dict[str, Tensor]]:
    """Read the averaged weights of the latest checkpoint, and its step.

    Raises:
        RunError: the run has no checkpoint yet, or it is damaged.
    """
    steps = checkpoint_steps(run)
    if not steps:
        raise RunError(f"{run}: no checkpoint yet; let vla-train reach its first one")
    return steps[-1], _read_tensors(run, steps[-1], "average")


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def _run_hash(run: Path) -> str:
    return hashlib.sha256((run / "run.json").read_bytes()).hexdigest()


def _read_tensors(run: Path, step: int, name: str) -> dict[str, Tensor]:
    folder = _folder(run, step)
    path = folder / f"{name}.safetensors"
    try:
        expected = json.loads((folder / "checkpoint.json").read_text())["sha256"]
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != expected[name]:
            raise RunError(
                f"{path}: damaged, its bytes do not hash to checkpoint.json; delete {folder}"
            )
        if expected["run"] != _run_hash(run):
            raise RunError(f"{folder}: belongs to another run than {run}/run.json; delete it")
        return load(content)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error}); delete {folder}") from error
