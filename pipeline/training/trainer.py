"""The training loop: batches from memory, AdamW, moving average, log, checkpoints, exact resume.

Knows windows, the agent and checkpoints; never loads the encoder. Every random number is a
function of seed and step, so that a run that was killed and resumed gives the same bits as one
that was not.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.errors import RunError
from pipeline.files import write_atomically
from pipeline.training.checkpoint import (
    Checkpoint,
    checkpoint_steps,
    read_checkpoint,
    write_checkpoint,
)
from pipeline.training.model_card import model_card
from pipeline.training.optimization import (
    build_optimizer,
    learning_rate,
    optimizer_tensors,
    restore_optimizer,
)
from pipeline.training.run_folder import RunDescription
from pipeline.training.windows import BatchSampler, WindowData, Windows, seeded_generator
from policy.agent import VLAAgent
from policy.ema import WeightAverage
from policy.errors import NonFiniteLossError

HELDOUT_WINDOWS: Final = 512  # at most; enough for a mean error, a second of compute


class Trainer:
    """One run's agent, optimiser and position."""

    def __init__(
        self, run: Path, description: RunDescription, data: WindowData, device: torch.device
    ):
        """Build the agent at its initial weights; `restore` moves it on."""
        self.run = run
        self.description = description
        self.config = config = description.config
        self.data = data
        self.device = device
        self.step = 0
        torch.manual_seed(config.seed)  # initial weights, the only use of the global stream
        self.agent = VLAAgent(config.agent, data.spec)
        self.agent.fit_statistics(data.statistics())
        self.agent.to(device)
        self.average = WeightAverage(self.agent)
        self.optimizer = build_optimizer(self.agent, config.optimizer)
        self._sampler = BatchSampler(
            data.train_rows, config.batch_size, config.seed, draws=data.draws
        )

    def restore(self) -> int:
        """Go to the run's latest checkpoint, if there is one, and return its step.

        Raises:
            RunError: the checkpoint is damaged or of another agent.
        """
        steps = checkpoint_steps(self.run)
        if not steps:
            return 0
        checkpoint = read_checkpoint(self.run, steps[-1])
        try:
            self.agent.load_state_dict(checkpoint.agent, strict=True)
        except RuntimeError as error:
            raise RunError(f"{self.run}: checkpoint of another agent ({error})") from error
        self.average.averaged = {
            name: tensor.to(self.device) for name, tensor in checkpoint.average.items()
        }
        restore_optimizer(self.optimizer, self.agent, checkpoint.optimizer)
        self.step = checkpoint.step
        return self.step

    def fit(self) -> None:
        """Train up to the configured number of steps, and leave a checkpoint of the last one."""
        config = self.config
        if self.step == config.steps:
            return
        log_path = self.run / "log.jsonl"
        _cut_log(log_path, self.step)
        with (
            log_path.open("a") as log,
            tqdm(
                total=config.steps, initial=self.step, desc="train", unit="step", disable=None
            ) as progress,
        ):
            while self.step < config.steps:
                figures = self.advance()
                progress.update()
                entry: dict[str, float] = {"step": self.step}
                if self.step % config.log_every == 0 or self.step == config.steps:
                    entry |= {name: float(value) for name, value in figures.items()}
                    progress.set_postfix(mse=f"{entry['raw_mse']:.4f}", refresh=False)
                if self.step % config.validate_every == 0 and len(self.data.heldout_rows):
                    entry["heldout_error"] = self.heldout_error() or 0.0
                if len(entry) > 1:
                    log.write(json.dumps(entry) + "\n")
                    log.flush()
                if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                    self.save({name: value for name, value in entry.items() if name != "step"})

    def advance(self) -> dict[str, Tensor]:
        """Take one optimiser step and return its figures.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite; the message names the episodes.
        """
        config = self.config
        rows = self._sampler.batch(self.step)
        variants = self.data.draw_variants(
            len(rows), seeded_generator(config.seed, "variants", self.step)
        )
        batch = self._windows(rows, variants)
        generator = seeded_generator(config.seed, "loss", self.step)
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=config.compute_dtype == "bfloat16"
        ):
            loss = self.agent.compute_loss(
                batch.features, batch.state, batch.actions, batch.valid, generator
            )
        if not torch.isfinite(loss.value):
            episodes = sorted(set(self.data.episode_of[rows].tolist()))
            raise NonFiniteLossError(
                f"{self.run}: loss is {loss.value.item()} at step {self.step}, episodes "
                f"{episodes}; check their state and action, or lower optimizer.learning_rate"
            )
        loss.value.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(
            self.agent.parameters(), config.optimizer.max_grad_norm, foreach=True
        )
        rate = learning_rate(config.optimizer, self.step, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.agent, self.step)
        self.step += 1
        return {"loss": loss.value.detach(), **loss.figures, "grad_norm": norm}

    @torch.no_grad()
    def heldout_error(self) -> float | None:
        """Return the root mean squared action error of the averaged weights.

        Over held-out windows in normalised units (the action range is 2), on fixed noise, with as
        many passes through the head as the objective takes by default; None if no episode is held
        out.
        """
        rows = self.data.heldout_rows
        if not len(rows):
            return None
        rows = rows[:: math.ceil(len(rows) / HELDOUT_WINDOWS)]
        batch = self._windows(rows)
        trained = {name: tensor.clone() for name, tensor in self.agent.state_dict().items()}
        self.agent.load_state_dict(self.average.averaged)
        noise = self.agent.noise(len(rows), seeded_generator(self.config.seed, "heldout", 0))
        predicted = self.agent.predict(batch.features, batch.state, noise.to(self.device))
        normalize = self.agent.action_normalizer.normalize
        error = (normalize(predicted) - normalize(batch.actions)).square()[batch.valid]
        self.agent.load_state_dict(trained)
        return math.sqrt(float(error.mean()))

    def save(self, figures: Mapping[str, float]) -> None:
        """Write a checkpoint of the present state; `figures` go into its model card."""
        checkpoint = Checkpoint(
            step=self.step,
            agent=dict(self.agent.state_dict()),
            average=dict(self.average.averaged),
            optimizer=optimizer_tensors(self.optimizer, self.agent),
        )
        card = model_card(self.description, self.agent, self.step, figures)
        write_checkpoint(self.run, checkpoint, card=card, keep=self.config.keep_checkpoints)

    def _windows(self, rows: Tensor, variants: Tensor | None = None) -> Windows:
        agent = self.config.agent
        windows = self.data.gather(
            rows,
            obs_horizon=agent.obs_horizon,
            pred_horizon=agent.head.pred_horizon,
            variants=variants,
        )
        return windows.to(self.device)


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines after `step`: a resumed run writes them again."""
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
