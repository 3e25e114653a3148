"""What a run starts from: the averaged weights of another run, or its own end with more steps."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from pipeline.errors import RunError
from pipeline.storage.local import write_json
from pipeline.training.config import TrainConfig
from pipeline.training.optimization import learning_rate
from pipeline.training.run.checkpoint import checkpoint_steps, read_average
from pipeline.training.run.folder import STEPS_FILE, RunDescription, read_run, run_hash
from policy.agent import VLAAgent

STATISTICS: Final = {
    "action_normalizer": "action statistics",
    "state_normalizer": "state statistics",
    "readers": "feature statistics",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The averaged weights of another run."""

    name: str
    """Its folder, step and digest, for people."""
    description: RunDescription
    weights: dict[str, Tensor]

    @classmethod
    def read(cls, run: Path) -> "Start":
        """Read the latest checkpoint of a run.

        Raises:
            RunError: `run` is no run, or has no usable checkpoint.
        """
        step, weights = read_average(run)
        name = f"{run.resolve().name} ({run_hash(run)[:12]}), step {step}"
        return cls(name, read_run(run), weights)

    def load_into(self, agent: VLAAgent, description: RunDescription) -> str:
        """Give an agent these weights; the scales of state, action and features stay its data's.

        Returns:
            What differs between the two runs, in words.

        Raises:
            RunError: the encoder is another one, or weights do not fit; the message names them.
        """
        ours, encoder = agent.state_dict(), description.data.encoder
        scales = {name for name, _ in agent.named_buffers()} & ours.keys()
        trained = [name for name in self.weights.keys() | ours.keys() if name not in scales]
        wrong = sorted({_part(name) for name in trained if not _fits(name, self.weights, ours)})
        if wrong or encoder.fingerprint != self.description.data.encoder.fingerprint:
            what = f"other sizes of {', '.join(wrong)}" if wrong else "features of another encoder"
            raise RunError(
                f"{self.name}: expected a run of the same readers, head and encoder as this one, "
                f"found {what}; use its settings (`vla-data info` shows them), or train "
                f"without --init-from"
            )
        agent.load_state_dict({name: self.weights[name] for name in trained}, strict=False)
        changed = [name for name in scales if not torch.allclose(self.weights[name], ours[name])]
        differs = [what for part, what in STATISTICS.items() if part in _roots(changed)]
        held, config = self.description, description.config.agent
        if held.config.agent.objective.kind != config.objective.kind:
            differs.append(f"objective ({held.config.agent.objective.kind})")
        if held.spec.view_names != description.spec.view_names:
            differs.append(f"views ({', '.join(held.spec.view_names)})")
        if held.data.fps != description.data.fps:
            differs.append(f"control rate ({held.data.fps:g} Hz)")
        return ", ".join(differs) or "nothing"


def lengthen(run: Path, config: TrainConfig) -> None:
    """Give a run more steps where `config` has more; log what that does to the learning rate."""
    held, step = read_run(run).config, checkpoint_steps(run)[-1]
    if config.steps <= held.steps:
        return
    write_json(run / STEPS_FILE, {"steps": config.steps})
    before, now = (
        learning_rate(held.optimizer, step, steps) for steps in (held.steps, config.steps)
    )
    logger.info(
        "%s: %d steps instead of %d; the %s schedule is stretched to the new end, so the learning "
        "rate of step %d is %.3g instead of %.3g",
        run,
        config.steps,
        held.steps,
        held.optimizer.schedule,
        step,
        now,
        before,
    )


def _fits(name: str, theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> bool:
    return name in theirs and name in ours and theirs[name].shape == ours[name].shape


def _part(name: str) -> str:
    """Name the part of an agent that a tensor belongs to: `readers.grid`, `head`."""
    return ".".join(name.split(".")[: 2 if name.startswith("readers.") else 1])


def _roots(names: Iterable[str]) -> set[str]:
    return {name.split(".")[0] for name in names}
