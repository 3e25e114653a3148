"""Several trainings at once that differ by their seed, each in a process of its own.

A small head does not keep several cores busy: three seeds of the preset `demo` take 2.2 times as
long as one on two cores. On a CPU, the features of a store are in memory once.
"""

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stderr
from functools import partial
from pathlib import Path

import torch

from pipeline.errors import ConfigError
from pipeline.processes import AnyWorker, ready, workers
from pipeline.progress import show_notes
from pipeline.training.config import TrainConfig, with_settings
from pipeline.training.distributed import has_launcher
from pipeline.training.session import TrainReport


def train_seeds(
    train_run: Callable[[Path, TrainConfig], TrainReport],
    out: Path,
    config: TrainConfig,
    seeds: Sequence[int],
) -> list[TrainReport]:
    """Train a run per seed, all at once, in the folders `seed-0` and so on below `out`.

    Each result equals that of the seed trained alone, on as many threads, to the bit. The first
    process shows its progress; the others do the same. `train_run` is `train`, of a run's folder
    and configuration; picklable.

    Raises:
        ConfigError: a seed is repeated or out of range, or torchrun started this process.
        VlaError: what a training raised; the others are interrupted, and write a checkpoint.
    """
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds: expected distinct numbers, found {', '.join(map(str, seeds))}")
    if has_launcher():
        raise ConfigError(
            "--seeds: expected no torchrun, whose processes share one run; leave it out"
        )
    try:
        configs = [with_settings(config, [f"seed={seed}"]) for seed in seeds]
    except ConfigError as error:
        raise ConfigError(f"--seeds: {error}") from error
    threads = max(1, torch.get_num_threads() // len(seeds))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends them as Ctrl-C does
    try:
        with workers(partial(_Training, train_run, threads), len(seeds)) as started:
            for place, (worker, own) in enumerate(zip(started, configs, strict=True)):
                worker.send("train", out / f"seed-{own.seed}", own, place == 0)
            reports: dict[AnyWorker, TrainReport] = {}
            while len(reports) < len(started):
                for done in ready([worker for worker in started if worker not in reports]):
                    reports[done] = done.receive()
            return [reports[worker] for worker in started]
    finally:
        signal.signal(signal.SIGTERM, before)


class _Training:
    """What trains in a process of its own."""

    def __init__(self, train_run: Callable[[Path, TrainConfig], TrainReport], threads: int):
        self._train_run = train_run
        torch.set_num_threads(threads)

    def train(self, run: Path, config: TrainConfig, is_shown: bool) -> TrainReport:
        if is_shown:
            show_notes()
        with Path(os.devnull).open("w") as nowhere:
            try:
                with nullcontext() if is_shown else redirect_stderr(nowhere):
                    return self._train_run(run, config)
            except KeyboardInterrupt:  # the process that started this one ends it
                raise SystemExit(130) from None

    def close(self) -> None:
        """End; nothing is held."""
