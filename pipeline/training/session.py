"""One call of training: open the stores, begin or resume the run, train, report."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.errors import RunError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import check_digest
from pipeline.features.store.records import hash_rows
from pipeline.features.store.start_frames import StartFrames, spread_evenly
from pipeline.storage.location import Location
from pipeline.storage.locks import sole_writer
from pipeline.training.config import TrainConfig
from pipeline.training.data.stores import warn_of_leaks
from pipeline.training.data.windows import WindowData
from pipeline.training.distributed import joined_ranks
from pipeline.training.run.folder import DataIdentity, RunDescription, StoreIdentity, write_run
from pipeline.training.run.start import Start, is_new_run, lengthen
from pipeline.training.run.tracking import check_trackers, flat_configuration, open_trackers
from pipeline.training.trainer import Trainer, TrainingWatcher
from policy.device import open_device

logger = logging.getLogger(__name__)

ENOUGH_STARTS: Final = 8  # training episodes without which validation episodes help to know cameras
MAX_RUN_STARTS: Final = 128  # episodes; 1.2 MB of three views


@dataclass(frozen=True)
class TrainReport:
    """The result of a finished training."""

    run: Path
    steps: int
    resumed_from: int
    num_parameters: int
    val_error: float | None
    """See `Trainer.validate`; None without validation episodes."""
    elapsed_s: float
    is_primary: bool
    """Whether this process of the run reports."""

    def summary(self) -> str:
        """Return one line."""
        start = f", resumed at step {self.resumed_from}" if self.resumed_from else ""
        error = "" if self.val_error is None else f", validation error {self.val_error:.4f}"
        return (
            f"{self.run}: {self.steps} steps{start} in {self.elapsed_s:.0f} s, "
            f"{self.num_parameters / 1e6:.1f} M parameters{error}"
        )


def train(
    stores: Sequence[Location],
    run: Path,
    config: TrainConfig,
    *,
    resume: bool,
    init_from: Path | None = None,
    weights: Sequence[float] = (),
    cache: Path | None = None,
    device: str = "auto",
    track: Sequence[str] = (),
    watchers: Sequence[TrainingWatcher] = (),
) -> TrainReport:
    """Train a policy on complete feature stores.

    Args:
        stores: one or more that one encoder made from the same views.
        run: folder of the run.
        config: everything that decides the weights.
        resume: the run in `run` if there is one, with more steps if `config` has more; otherwise
            an existing run is an error.
        init_from: a run whose averaged weights a new run begins with; None: weights from the seed.
        weights: see `WindowData`, as `cache`.
        cache: where a store in object storage or with compressed features is copied to.
        device: `auto`, or torch's name of a device.
        track: names of trackers, out of `TRACKERS`, that get every figure of the log.
        watchers: called at every checkpoint.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint of the step was written.
        RankLostError: another process of the training has ended.
        MissingExtraError, TrackerError: a tracker is not installed, or cannot be opened.
        StoreError, ConfigError: see `WindowData`.
        RunError: `run` holds another run, or holds one and `resume` is False.
        NonFiniteLossError: the loss is not finite; checkpoints before it stay valid.
    """
    check_trackers(track)
    with joined_ranks(open_device(device)) as (ranks, opened):
        start = None if init_from is None else Start.read(init_from)
        data, description, write = _open_data(stores, weights=weights, config=config, cache=cache)
        if ranks.is_primary:
            warn_of_leaks(data.leaks)
            _warn_of_instructions(data, config)
        if start is not None:
            description = description.model_copy(update={"init_from": start.name})
        trainer = Trainer(run, description, data, opened, ranks)
        if ranks.is_primary and not run.exists():
            run.mkdir(parents=True)
        with sole_writer(run, RunError) if ranks.is_primary else nullcontext():
            if ranks.is_primary and is_new_run(run, description, resume=resume):
                write(run, description)
            elif ranks.is_primary:
                trainer.description = lengthen(run, config)  # it knows how the run began
            ranks.any(False)  # the others wait until the run is there
            resumed_from = trainer.restore()
            if start is not None and not resumed_from:
                differs = start.load_into(trainer.agent, description)
                trainer.average.restore(trainer.agent.state_dict())
                if ranks.is_primary:
                    logger.info(
                        "initialized with the weights of %s; differs: %s", start.name, differs
                    )
            started = time.monotonic()
            trackers = {}
            if ranks.is_primary:
                logger.info(
                    "training from step %d to %d, batch size %d, on %d steps of %d episodes "
                    "(%d of them for validation), on %s",
                    resumed_from,
                    config.steps,
                    config.batch_size,
                    len(data.episode_of),
                    len(data.is_validation),
                    int(data.is_validation.sum()),
                    opened,
                )
                settings = flat_configuration(config.model_dump(mode="json"))
                if trainer.step < config.steps:  # else none would be closed
                    trackers = open_trackers(track, run, settings, trainer.step)
            trainer.fit(trackers, watchers)
        if ranks.is_primary and not trainer.validated:  # the run was complete already
            trainer.validate()
        return TrainReport(
            run=run,
            steps=config.steps,
            resumed_from=resumed_from,
            num_parameters=sum(tensor.numel() for tensor in trainer.agent.parameters()),
            val_error=trainer.validated.get("val_error"),
            elapsed_s=time.monotonic() - started,
            is_primary=ranks.is_primary,
        )


def _warn_of_instructions(data: WindowData, config: TrainConfig) -> None:
    words = data.instructions.words
    if len(words) > 1 and config.agent.language is None:
        logger.warning(
            "the data has %d instructions (%r, ...), and the policy takes none; if the "
            "frames do not show the task, embed with --text-encoder and use --preset multitask or "
            "--set agent.language={}",
            len(words),
            words[0],
        )


def _open_data(
    paths: Sequence[Location], *, weights: Sequence[float], config: TrainConfig, cache: Path | None
) -> tuple[WindowData, RunDescription, Callable[[Path, RunDescription], None]]:
    """Return what the stores hold, the run's description, and what writes a new run."""
    stores = [FeatureStore.open(path) for path in paths]
    first, features = stores[0], tuple(config.agent.readers)
    with ExitStack() as held:
        digests = [held.enter_context(store.unreplaced()) for store in stores]
        for store in stores:
            check_digest(store)
        data = WindowData(
            *stores,
            features=features,
            validation_share=config.validation_share,
            weights=weights,
            cache=cache,
            has_language=config.agent.language is not None,
            is_balanced=config.balance_instructions,
        )
        probe = first.read_probe().only(features)
        bases = {name: values for name, values in first.read_bases().items() if name in features}
    starts = _join_starts(stores, data.is_validation.numpy())
    vectors = data.instructions.vectors
    identity = DataIdentity(
        stores=tuple(
            StoreIdentity(
                name=str(store.attributes.manifest["name"]),
                digest=digest,
                weight=weight,
                manifest=store.attributes.manifest,
            )
            for store, digest, weight in zip(stores, digests, data.weights, strict=True)
        ),
        fps=first.attributes.fps,
        fit=first.attributes.fit,
        encoder=first.encoder.only(features),
        probe_digest=probe.digest(),
        start_frames_digest=starts.digest(),
        instructions=() if vectors is None else data.instructions.words,
        instructions_digest=None if vectors is None else hash_rows([vectors.numpy()]),
        text_encoder=data.instructions.encoder,
    )
    write = partial(
        write_run,
        probe=probe,
        starts=starts,
        bases=bases,
        instructions=None if vectors is None else vectors.numpy(),
    )
    return data, RunDescription(config=config, spec=data.spec, data=identity), write


def _join_starts(stores: Sequence[FeatureStore], is_validation: np.ndarray) -> StartFrames:
    """Join the stores' start frames: those of the training episodes, if they are enough."""
    starts = [store.read_start_frames() for store in stores]
    counts = [len(store.read_episode_ends()) for store in stores]
    firsts = np.cumsum([0, *counts[:-1]])
    frames = np.concatenate([held.frames for held in starts])
    episodes = np.concatenate([held.episodes + n for held, n in zip(starts, firsts, strict=True)])
    trained = np.flatnonzero(~is_validation[episodes])
    chosen = trained if len(trained) >= ENOUGH_STARTS else np.arange(len(episodes))
    chosen = chosen[spread_evenly(len(chosen), MAX_RUN_STARTS)]
    return StartFrames(frames[chosen], episodes[chosen])
