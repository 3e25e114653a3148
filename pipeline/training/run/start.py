"""How a run begins: anew, from the averaged weights of another run, or where it stopped."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pipeline.errors import RunError
from pipeline.storage.local import is_vacant, write_json
from pipeline.training.config import TrainConfig
from pipeline.training.run.checkpoint import checkpoint_steps, read_average
from pipeline.training.run.folder import (
    PROBE_FILE,
    START_FRAMES_FILE,
    STEPS_FILE,
    RunDescription,
    read_run,
    run_hash,
)
from policy.agent import VLAAgent

logger = logging.getLogger(__name__)


def is_new_run(run: Path, description: RunDescription, *, resume: bool) -> bool:
    """Return whether a run begins here, and refuse anything else in the folder (RunError).

    A run that ended before its first checkpoint has nothing to resume: it begins again, with any
    settings. A resumed run may get more steps.
    """
    if not (run / "run.json").exists():
        if not is_vacant(run) and not _was_cut_off(run):
            raise RunError(
                f"{run}: expected a training run or nothing, found other files; use another --out"
            )
        return True
    if not checkpoint_steps(run):
        return True
    if not resume:
        raise RunError(
            f"{run}: contains a run already; resume it with --resume, or use another --out"
        )
    held = read_run(run)
    steps = max(held.config.steps, description.config.steps)
    lengthened = held.model_copy(update={"config": held.config.model_copy(update={"steps": steps})})
    begun = description.init_from  # its run may have been trained further since
    if begun is None or begun.rpartition(",")[0] == str(held.init_from).rpartition(",")[0]:
        begun = held.init_from
    ours = description.model_copy(update={"init_from": begun})
    derived = {"data": {"instructions_digest"}}  # from the stores; runs of earlier versions lack it
    was, now = (one.model_dump(mode="json", exclude=derived) for one in (lengthened, ours))
    change = next(_changes(was, now), None)
    if change is not None:
        raise RunError(
            f"{run}: was started with {change}; a resumed run keeps its settings and stores, so "
            f"use another --out"
        )
    return False


def _was_cut_off(run: Path) -> bool:
    """Whether everything there is from a run that was killed before it had written run.json."""
    names = {path.name for path in run.iterdir()}
    return {n for n in names if not n.endswith(".partial")} <= {PROBE_FILE, START_FRAMES_FILE}


def _changes(held: object, ours: object, field: str = "") -> Iterator[str]:
    """Yield every field in which two descriptions differ, with both values."""
    if isinstance(held, list) and isinstance(ours, list):
        if len(held) != len(ours):
            yield f"{len(held)} {field}, now there are {len(ours)}"
            return
        held, ours = dict(enumerate(held, start=1)), dict(enumerate(ours, start=1))
    if isinstance(held, dict) and isinstance(ours, dict) and held.keys() == ours.keys():
        for key in held:
            yield from _changes(held[key], ours[key], f"{field}.{key}".lstrip("."))
    elif held != ours:
        yield f"{field}={held}, now it is {ours}"


@dataclass(frozen=True)
class Start:
    """The averaged weights of another run."""

    name: str
    """Its folder, step and digest, for people."""
    description: RunDescription
    weights: dict[str, Tensor]

    @classmethod
    def read(cls, run: Path) -> "Start":
        """Read the latest checkpoint of a run (RunError: it is no run, or has no usable one)."""
        held, (step, weights) = read_run(run), read_average(run)
        name = f"{run.resolve().name} ({run_hash(run)[:12]}), step {step}"
        return cls(name, held, weights)

    def load_into(self, agent: VLAAgent, description: RunDescription) -> str:
        """Give an agent these weights; the scales of state, action and features stay its data's.

        Returns:
            The settings, views and rate in which the two runs differ, in words.

        Raises:
            RunError: weights have other sizes, which the message names, or other inputs.
        """
        scales = {name for name, _ in agent.named_buffers()}
        theirs, ours = (
            {name: tensor.shape for name, tensor in weights.items() if name not in scales}
            for weights in (self.weights, agent.state_dict())
        )
        trained = theirs.keys() | ours.keys()
        parts = [name.split(".") for name in trained if theirs.get(name) != ours.get(name)]
        wrong = sorted({".".join(p[:2] if p[0] == "readers" else p[:1]) for p in parts})
        if wrong or _meaning(self.description) != _meaning(description):
            other = "features of another encoder, of another text encoder, or in another order"
            what = f"other sizes of {', '.join(wrong)}" if wrong else other
            raise RunError(
                f"{self.name}: expected a run of the same readers, head and encoders as this one, "
                f"found {what}; use its settings (`vla-data info` shows them), or train "
                f"without --init-from"
            )
        agent.load_state_dict({name: self.weights[name] for name in trained}, strict=False)
        compared = {"config": {"agent"}, "spec": {"view_names"}, "data": {"fps"}}
        runs = self.description, description
        held, now = (run.model_dump(mode="json", include=compared) for run in runs)
        return "; ".join(_changes(held, now)) or "nothing"


def _meaning(run: RunDescription) -> tuple[object, ...]:
    """What the inputs of a run's weights are: features in their order, and instructions."""
    text = run.data.text_encoder if run.config.agent.language else None
    return [*run.config.agent.readers], run.data.encoder.fingerprint, text and text.fingerprint


def lengthen(run: Path, config: TrainConfig) -> RunDescription:
    """Give a run more steps where `config` has more, and return it; its schedule is stretched."""
    held = read_run(run).config
    if config.steps > held.steps:
        write_json(run / STEPS_FILE, {"steps": config.steps})
        what = "%s: %d steps instead of %d; the %s schedule is stretched to the new end"
        logger.info(what, run, config.steps, held.steps, held.optimizer.schedule)
    return read_run(run)
