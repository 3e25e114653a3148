"""A run's folder apart from its checkpoints.

Below the folder:

    run.json                              configuration, data and encoder; written when a run starts
    probe.safetensors                     frames with their features, to recognize the encoder, the
                                          bases of these features, and vectors of instructions
    start_frames.safetensors              small first frames, to recognize the cameras
    log.jsonl                             figures, one JSON object per line
    checkpoints/                          see `checkpoint.py`
    steps.json                            the number of steps, if it was raised since
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pipeline.errors import RunError
from pipeline.features.identity.probe import Probe
from pipeline.features.store.records import hash_rows
from pipeline.features.store.start_frames import StartFrames
from pipeline.storage.local import write_atomically, write_json
from pipeline.training.config import TrainConfig
from policy.encoders.environment import ComputeEnvironment
from policy.errors import invalid_field
from policy.spec import AgentSpec, EncoderIdentity, Fit, FrozenModel

FORMAT_VERSION: Final = 9
FEATURES: Final = "features/"
BASES: Final = "bases/"
INSTRUCTIONS: Final = "instructions"
PROBE_FILE: Final = "probe.safetensors"
STEPS_FILE: Final = "steps.json"
START_FRAMES_FILE: Final = "start_frames.safetensors"


class StoreIdentity(FrozenModel):
    """One of the stores that a run was trained on."""

    name: str
    digest: str
    """sha256 of the store's content."""
    weight: float
    """How often training draws one of its steps, against the other stores."""
    manifest: dict[str, Any]


class DataIdentity(FrozenModel):
    """The data of a run, and the encoder of its features."""

    stores: tuple[StoreIdentity, ...] = Field(min_length=1)
    """In the order of their rows."""
    fps: float
    """Control steps per second."""
    fit: Fit = "stretch"
    """How images that are not square are resized."""
    encoder: EncoderIdentity
    """With only the features that the policy reads."""
    probe_digest: str
    """`Probe.digest` of the first store's probe, of which the run has a copy."""
    start_frames_digest: str
    """`StartFrames.digest` of the run's first frames."""
    instructions: tuple[str, ...] = ()
    """The instructions of the training; empty for a policy without them."""
    instructions_digest: str | None = None
    """sha256 of their vectors; None without any, and in runs of earlier versions."""
    text_encoder: EncoderIdentity | None = None
    """What made their vectors, of which the run has a copy."""

    @property
    def name(self) -> str:
        """The datasets' names."""
        return " + ".join(store.name for store in self.stores)

    @property
    def store_digest(self) -> str:
        """The digest of the one store, or one of the digests and weights of several."""
        if len(self.stores) == 1:
            return self.stores[0].digest
        lines = [f"{store.digest} {store.weight!r}" for store in self.stores]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class RunDescription(FrozenModel):
    """Everything that is needed to resume a run and to roll it out."""

    format_version: int = FORMAT_VERSION
    """Raised when older code could no longer read the run."""
    config: TrainConfig
    """Everything that decides the weights, given the data."""
    spec: AgentSpec
    data: DataIdentity
    init_from: str | None = None
    """The run whose averaged weights it began with; None: weights from the seed."""


def write_run(
    run: Path,
    description: RunDescription,
    probe: Probe,
    starts: StartFrames,
    *,
    bases: Mapping[str, np.ndarray],
    instructions: np.ndarray | None,
) -> None:
    """Write a new run's probe, bases, instructions and start frames, then its description."""
    run.mkdir(parents=True, exist_ok=True)
    notes = {"environment": probe.environment.model_dump_json(), "tolerance": repr(probe.tolerance)}
    arrays = {
        "frames": probe.frames,
        **{f"{FEATURES}{name}": values for name, values in probe.features.items()},
        **{f"{BASES}{name}": values for name, values in bases.items()},
        **({} if instructions is None else {INSTRUCTIONS: instructions}),
    }
    _write_arrays(run / PROBE_FILE, arrays, notes)
    arrays = {"frames": starts.frames, "episodes": starts.episodes}
    _write_arrays(run / START_FRAMES_FILE, arrays, {})
    (run / STEPS_FILE).unlink(missing_ok=True)  # of a run that was here and has no checkpoint
    write_json(run / "run.json", description.model_dump(mode="json"))


def read_probe(run: Path, description: RunDescription) -> Probe:
    """Read a run's probe (RunError: it is absent, damaged, or not the one of run.json)."""
    path = run / PROBE_FILE
    with _reading(path):
        arrays, notes = _read_arrays(path)
        probe = Probe(
            frames=arrays["frames"],
            features=_below(FEATURES, arrays),
            environment=ComputeEnvironment.model_validate_json(notes["environment"]),
            tolerance=float(notes["tolerance"]),
        )
    _check_digest(path, "probe", probe.digest(), description.data.probe_digest)
    return probe


def read_bases(run: Path) -> dict[str, np.ndarray]:
    """Read the bases of a run's features (RunError: the file is absent or damaged)."""
    with _reading(run / PROBE_FILE):
        return _below(BASES, _read_arrays(run / PROBE_FILE)[0])


def read_instructions(run: Path, description: RunDescription) -> dict[str, np.ndarray]:
    """Read the vector of each instruction of a run (RunError: absent, or not run.json's)."""
    path, data = run / PROBE_FILE, description.data
    with _reading(path):
        vectors = _read_arrays(path)[0].get(INSTRUCTIONS, ())
        found = dict(zip(data.instructions, vectors, strict=True))
    if data.instructions_digest is not None:
        _check_digest(path, "instructions", hash_rows(vectors), data.instructions_digest)
    return found


def read_start_frames(run: Path, description: RunDescription) -> StartFrames:
    """Read a run's start frames (RunError: absent, damaged, or not those of run.json)."""
    path = run / START_FRAMES_FILE
    with _reading(path):
        starts = StartFrames(**_read_arrays(path)[0])
    _check_digest(path, "start frames", starts.digest(), description.data.start_frames_digest)
    return starts


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray], notes: dict[str, str]) -> None:
    dense = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    write_atomically(path, save(dense, notes))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(
            f"{path}: cannot be read ({error}); restore it from a copy, or train again"
        ) from error


def _read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no dict


def _below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [name for name in arrays if name.startswith(prefix)]
    return {name.removeprefix(prefix): arrays[name] for name in names}


def _check_digest(path: Path, what: str, found: str, expected: str) -> None:
    if found != expected:
        raise RunError(
            f"{path}: expected the {what} listed in run.json ({expected[:12]}), found others; "
            f"restore it from a copy, or train again"
        )


def read_run(run: Path) -> RunDescription:
    """Read a run's description (RunError: there is none, or this program does not read it)."""
    path = run / "run.json"
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(
            f"{run}: expected a training run, found none; create one with vla-train"
        ) from error
    except ValueError as error:
        raise RunError(f"{path}: cannot be read ({error})") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise RunError(
            f"{path}: expected format version {FORMAT_VERSION}, found {version}; use the "
            f"release of frozen-vla that trained it, or train again"
        )
    try:
        if (run / STEPS_FILE).exists():
            content["config"] |= json.loads((run / STEPS_FILE).read_text())
        return RunDescription.model_validate(content)
    except ValidationError as error:
        raise RunError(f"{path}: {invalid_field(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{run}: run.json or {STEPS_FILE} cannot be read ({error})") from error


def run_hash(run: Path) -> str:
    """Return the sha256 of a run's description, which its checkpoints carry."""
    return hashlib.sha256((run / "run.json").read_bytes()).hexdigest()
