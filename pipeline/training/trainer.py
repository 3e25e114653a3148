"""The training loop: batches, AdamW, moving average, log, checkpoints, exact resume.

Every random number is a function of seed and step, so that a run that was killed and resumed gives
the same bits as one that was not. A batch is trained in `gradient_accumulation_steps` chunks, which
the processes of a run share, so that any number of processes takes the same steps.
"""

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.errors import ConfigError
from pipeline.progress import Estimate
from pipeline.training.data.batches import Batches
from pipeline.training.data.sampling import seeded_generator
from pipeline.training.data.windows import WindowData, Windows
from pipeline.training.distributed import Ranks
from pipeline.training.optimization import (
    build_optimizer,
    learning_rate,
    optimizer_tensors,
    restore_optimizer,
)
from pipeline.training.run.checkpoint import (
    Checkpoint,
    checkpoint_steps,
    read_checkpoint,
    write_checkpoint,
)
from pipeline.training.run.folder import RunDescription
from pipeline.training.run.model_card import model_card
from pipeline.training.run.tracking import RunLog, Tracker
from policy.agent import VLAAgent
from policy.encoders.base import best_compute_dtype
from policy.errors import NonFiniteLossError
from policy.network.ema import WeightAverage

MAX_FEATURES_SHARE: Final = 0.5  # of a GPU's free memory; the rest is for training itself
# Width of a head. A step of `demo` (128) took 1.28 times as long in bfloat16 with AVX512 and 0.93
# times with AMX, one of `proj96` (384) 0.74 and 0.68 times.
MIN_MIXED_WIDTH: Final = 256
MAX_VALIDATION_WINDOWS: Final = 512  # enough for a mean error, one second of compute


class TrainingWatcher:
    """Follows a run while it trains, as rollouts do; this one does nothing."""

    def checkpoint_written(self, run: Path, step: int) -> None:
        """Take note of a checkpoint; must return at once, and may keep the run's files open."""

    def figures(self) -> Sequence[tuple[int, Mapping[str, float]]]:
        """Return the figures that are new since the last call, with their steps."""
        return ()

    def finish(self) -> None:
        """Wait for the remaining work, before `figures` is called for the last time."""


class Trainer:
    """One run's agent, optimizer and position."""

    def __init__(
        self,
        run: Path,
        description: RunDescription,
        data: WindowData,
        device: torch.device,
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    ):
        """Build the agent with its initial weights (ConfigError: the batch cannot be shared)."""
        self.run = run
        self.description = description
        self.config = config = description.config
        self.data = data
        self.device = device
        self.ranks = ranks
        if config.gradient_accumulation_steps % ranks.size:
            raise ConfigError(
                f"{ranks.size} processes cannot share gradient_accumulation_steps="
                f"{config.gradient_accumulation_steps} evenly; set it to {ranks.size}, or a "
                f"multiple of it"
            )
        self.step = 0
        with torch.random.fork_rng(devices=[]):  # initial weights come from the global stream
            torch.manual_seed(config.seed)
            self.agent = VLAAgent(config.agent, data.spec)
        self.agent.fit_statistics(data.statistics)
        self.agent.to(device)
        self.average = WeightAverage(self.agent)
        self.averaged_agent = self.average.mirror(self.agent)
        """The averaged weights as an agent: it is validated, and teaches one that `is_taught`."""
        is_mixed = device.type == "cpu" and config.agent.head.n_emb >= MIN_MIXED_WIDTH
        best = best_compute_dtype(device) if is_mixed else "float32"
        self.compute_dtype = config.compute_dtype or best
        self.optimizer = build_optimizer(self.agent, config.optimizer)
        self.validated: dict[str, float] = {}
        self.batches = Batches(data, config, ranks)
        self.check_every = config.log_every if device.type == "cuda" else 1
        """Steps between looks at the gradients, because a look waits for a GPU."""
        self._unchecked: list[tuple[int, Tensor, Tensor]] = []  # steps, norms, rows
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            if data.features_nbytes <= MAX_FEATURES_SHARE * free:
                # Another training may have taken it meanwhile: the same features, from the disk.
                with suppress(torch.OutOfMemoryError):
                    data.move_features(device)

    def restore(self) -> int:
        """Load the latest checkpoint if there is one (RunError: damaged, or of another run)."""
        steps = checkpoint_steps(self.run)
        if not steps:
            return 0
        checkpoint = read_checkpoint(self.run, steps[-1])
        self.agent.load_state_dict(checkpoint.agent, strict=True)
        self.average.restore(checkpoint.average)
        restore_optimizer(self.optimizer, self.agent, checkpoint.optimizer)
        self.step = checkpoint.step
        return self.step

    def fit(self, trackers: Mapping[str, Tracker], watchers: Sequence[TrainingWatcher]) -> None:
        """Train to the configured number of steps, and write a checkpoint of the last one.

        Ctrl-C or SIGTERM: KeyboardInterrupt, when the step has a checkpoint.
        """
        first, steps = self.step, self.config.steps
        if first == steps:
            return
        log = RunLog(self.run, self.step, trackers) if self.ranks.is_primary else None
        estimate = Estimate(steps - first, "step")
        hidden = None if log is not None else True  # None: hidden unless there is a terminal
        bar = tqdm(total=steps, initial=self.step, desc="train", unit="step", disable=hidden)
        with closing(log) if log else nullcontext(), bar, deferred_interrupt() as interrupted:
            while self.step < steps:
                figures = self.advance()
                bar.update()
                is_stopped = self.ranks.any(interrupted())
                if log is not None:
                    is_last = is_stopped or self.step == steps
                    entry = self._entry(figures, log, is_last=is_last)
                    if self.step % self.config.log_every == 0:
                        estimate.advance(min(self.config.log_every, self.step - first))
                        bar.set_postfix(mse=f"{entry['raw_mse']:.4f}", refresh=False)
                    if entry:
                        log.write(self.step, entry)
                    if self.step % self.config.checkpoint_every == 0 or is_last:
                        self.save(entry)
                        for watcher in watchers:
                            watcher.checkpoint_written(self.run, self.step)
                    if self.step == steps:
                        for watcher in watchers:
                            watcher.finish()
                    for watcher in watchers:
                        for step, late in watcher.figures():
                            log.write(step, late)
                if is_stopped and self.step < steps:
                    raise KeyboardInterrupt

    def _entry(
        self, figures: Mapping[str, Tensor], log: RunLog, *, is_last: bool
    ) -> dict[str, float]:
        """Return the log's entry of this step; empty at most steps."""
        config = self.config
        entry: dict[str, float] = {}
        if self.step % config.log_every == 0 or is_last:
            entry |= {name: float(value) for name, value in figures.items()}
            entry["learning_rate"] = learning_rate(config.optimizer, self.step - 1, config.steps)
            entry["steps_per_s"] = log.speed(self.step)
        if self.step % config.validate_every == 0 or self.step == config.steps:
            entry |= self.validate()
        return entry

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Measure the averaged weights on windows of validation episodes, the same each time.

        Returns:
            `val_error`, the root mean squared action error in normalized units (the action range
            is 2; clipped as in training), with the objective's default NFE, and `val_loss`, the
            training's own loss, in which an agent that `is_taught` teaches itself; where there are
            several instructions, `val_error/<instruction>` of each. Empty without such episodes.
        """
        agent, data, seed = self.averaged_agent, self.data, self.config.seed
        rows = data.validation_rows
        rows = rows[:: max(1, math.ceil(len(rows) / MAX_VALIDATION_WINDOWS))]
        if not len(rows):
            return {}
        windows = data.gather(
            rows, obs_horizon=agent.config.obs_horizon, pred_horizon=agent.config.head.pred_horizon
        ).to(self.device)
        inputs = windows.features, windows.state
        noise = agent.noise(len(rows), seeded_generator(seed, "validation", 0))
        predicted = agent.predict(*inputs, noise.to(self.device))
        normalize = agent.action_normalizer.normalize
        error = (normalize(predicted) - normalize(windows.actions)).square()
        generator = seeded_generator(seed, "validation loss", 0)
        loss = agent.compute_loss(*inputs, windows.actions, windows.valid, generator)
        self.validated = {
            "val_error": math.sqrt(float(error[windows.valid].mean())),
            "val_loss": float(loss.value),
        }
        words, number = data.instructions.words, data.instruction_of(rows)
        for place in np.unique(number) if len(words) > 1 else ():
            own = (number == place).to(self.device)
            mean = float(error[own][windows.valid[own]].mean())
            self.validated[f"val_error/{words[place]}"] = math.sqrt(mean)
        return self.validated

    def advance(self) -> dict[str, Tensor]:
        """Take one optimizer step and return its figures.

        Raises:
            NonFiniteLossError: the gradient is NaN or infinite; the message names the episodes of
                this process's chunks. No weight was changed or, if not every step is checked, none
                was saved.
            RankLostError: another process of the run has ended.
        """
        config = self.config
        sums: dict[str, Tensor] = {}
        rows = []
        own_chunks = self.ranks.share(config.gradient_accumulation_steps)
        for chunk, windows in zip(own_chunks, self.batches.chunks(self.step), strict=True):
            rows.append(windows.rows)
            figures = self._backward(chunk, windows)
            sums = {name: sums.get(name, 0) + value for name, value in figures.items()}
        gradients = [
            parameter.grad for parameter in self.agent.parameters() if parameter.grad is not None
        ]
        self.ranks.add_up([*gradients, *sums.values()])
        norm = nn.utils.clip_grad_norm_(
            self.agent.parameters(), config.optimizer.max_grad_norm, foreach=True
        )
        self._unchecked.append((self.step, norm, torch.cat(rows)))
        if (self.step + 1) % self.check_every == 0:
            self._check_gradients()
        rate = learning_rate(config.optimizer, self.step, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.agent, self.step)
        self.step += 1
        return sums | {"grad_norm": norm}

    def _backward(self, chunk: int, windows: Windows) -> dict[str, Tensor]:
        """Add a chunk's share of the batch's gradient, and return its share of the figures."""
        config = self.config
        batch = windows.to(self.device)
        index = self.step * config.gradient_accumulation_steps + chunk
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.compute_dtype == "bfloat16"
        ):
            loss = self.agent.compute_loss(
                batch.features,
                batch.state,
                batch.actions,
                batch.valid,
                seeded_generator(config.seed, "loss", index),
                teacher=self.averaged_agent,
            )
        if self.check_every == 1 and not torch.isfinite(loss.value):
            raise self._diverged("loss", loss.value, self.step, windows.rows)
        (loss.value / config.gradient_accumulation_steps).backward()  # type: ignore[no-untyped-call]
        figures = {"loss": loss.value.detach(), **loss.figures}
        return {
            name: value.float() / config.gradient_accumulation_steps
            for name, value in figures.items()
        }

    def _check_gradients(self) -> None:
        for step, norm, rows in self._unchecked:
            if not torch.isfinite(norm):
                raise self._diverged("gradient", norm, step, rows)
        self._unchecked.clear()

    def _diverged(self, what: str, value: Tensor, step: int, rows: Tensor) -> NonFiniteLossError:
        episodes = sorted(set(self.data.episode_of[rows].tolist()))
        return NonFiniteLossError(
            f"{self.run}: {what} is {value.item()} at step {step}, episodes {episodes} "
            f"(counted through all stores); check their state and action, or lower "
            f"optimizer.learning_rate"
        )

    def save(self, figures: Mapping[str, float]) -> None:
        """Write a checkpoint; `figures` go into its card, `val_error` decides if it is the best.

        If a gradient before it was not finite, nothing is written (NonFiniteLossError).
        """
        self._check_gradients()
        checkpoint = Checkpoint(
            step=self.step,
            agent=dict(self.agent.state_dict()),
            average=dict(self.average.averaged),
            optimizer=optimizer_tensors(self.optimizer, self.agent),
        )
        card = model_card(self.description, self.agent, self.step, figures)
        write_checkpoint(
            self.run,
            checkpoint,
            card=card,
            keep=self.config.keep_checkpoints,
            val_error=figures.get("val_error"),
        )


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield whether Ctrl-C or SIGTERM has come, instead of raising it; a second Ctrl-C is raised.

    Outside the main thread, which alone gets signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = threading.Event()
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}

    def remember(_number: int, _frame: FrameType | None) -> None:
        came.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])  # a SIGTERM may come twice

    for kind in before:
        signal.signal(kind, remember)
    try:
        yield came.is_set
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
