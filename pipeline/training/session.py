"""One call of training: open the stores, begin or resume the run, train, report.

Knows stores, runs and the trainer; nothing about a step.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from pipeline.errors import ConfigError, RunError
from pipeline.features.identity.probe import Probe
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.start_frames import StartFrames, spread_evenly
from pipeline.storage.folders import Location
from pipeline.storage.local_files import sole_writer
from pipeline.training.config import TrainConfig
from pipeline.training.data.live import open_live_windows
from pipeline.training.data.steps import StepData
from pipeline.training.data.stores import check_weights, unreplaced, warn_of_leaks
from pipeline.training.data.streaming import StreamedWindowData
from pipeline.training.data.windows import WindowData
from pipeline.training.distributed import Ranks, joined_ranks
from pipeline.training.run.folder import (
    DataIdentity,
    RunDescription,
    StoreIdentity,
    write_run,
)
from pipeline.training.run.resume import is_new_run
from pipeline.training.run.tracking import (
    Tracker,
    check_trackers,
    flat_configuration,
    open_trackers,
)
from pipeline.training.run.watcher import TrainingWatcher
from pipeline.training.trainer import Trainer
from policy.device import open_device

ENOUGH_STARTS: Final = 8  # training episodes without which validation episodes help to know cameras
MAX_RUN_STARTS: Final = 128  # episodes; 1.2 MB of three views


@dataclass(frozen=True)
class TrainReport:
    """What a finished training did."""

    run: Path
    steps: int
    resumed_from: int
    num_parameters: int
    heldout_error: float | None
    """Root mean squared action error on held-out episodes, normalised; None without."""
    elapsed_s: float
    features_from: str
    """Where each batch took its features from."""
    is_primary: bool
    """Whether this is the process that reports, out of those of the run."""

    def summary(self) -> str:
        """Say it in one line."""
        start = f", resumed at step {self.resumed_from}" if self.resumed_from else ""
        error = "" if self.heldout_error is None else f", held-out error {self.heldout_error:.4f}"
        return (
            f"{self.run}: {self.steps} steps{start} in {self.elapsed_s:.0f} s, "
            f"{self.num_parameters / 1e6:.1f} M parameters, features from {self.features_from}"
            f"{error}"
        )


def train(
    stores: Sequence[Location],
    run: Path,
    config: TrainConfig,
    *,
    resume: bool,
    weights: Sequence[float] = (),
    live: bool = False,
    backbone: str | None = None,
    device: str = "cpu",
    track: Sequence[str] = (),
    watchers: Sequence[TrainingWatcher] = (),
) -> TrainReport:
    """Train a policy on complete feature stores.

    Args:
        stores: one or more that one encoder made from the same views.
        run: folder of the run.
        config: everything that decides the weights.
        resume: go on with the run in `run` if there is one; otherwise one there is an error.
        weights: how often a step of each store is drawn, against the others; empty: all alike.
        live: run the encoder on the datasets' frames at every step instead of reading features.
        backbone: where the encoder of a live training lies now; None takes the name in the stores.
        device: torch's name of the device to train on.
        track: names of trackers, out of `TRACKERS`, that are told every figure of the log.
        watchers: told of every checkpoint.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint of the step was written.
        RankLostError: another process of the training has ended.
        MissingExtraError: the library of a tracker is not installed.
        StoreError, IncompleteStoreError: a store cannot be used, or differs from the first.
        ConfigError: the weights do not fit the stores, or nothing needs a backbone; a memory was
            set that is too small, or beside weights or `live`.
        RunError: `run` holds another run, or holds one and `resume` is False.
        NonFiniteLossError: the loss is not finite; checkpoints before it stay valid.
        ManifestError, DatasetError, FrameReadError, EncoderLoadError, EncoderMismatchError: live,
            the frames or their encoder are not there, or are others.
    """
    if backbone is not None and not live:
        raise ConfigError(f"backbone {backbone}: features are read from the stores; add --live")
    weights = check_weights(weights, len(stores))
    if config.memory is not None and (live or len(set(weights)) > 1):
        raise ConfigError(
            f"--memory with {'--live' if live else '--weights'}: features are read from the stores "
            f"in the order of their units, all alike; leave out one of the two"
        )
    check_trackers(track)
    with joined_ranks(open_device(device)) as (ranks, opened):
        data_source = _open_data(
            stores,
            weights=weights,
            config=config,
            live=live,
            backbone=backbone,
            device=opened,
            ranks=ranks,
        )
        with data_source as (data, identity, probe, starts):
            description = RunDescription(
                config=config,
                spec=data.spec,
                data=identity,
                live=live,
                num_streams=None if config.memory is None else ranks.size,
            )
            trainer = Trainer(run, description, data, opened, ranks)
            is_new = ranks.is_primary and is_new_run(run, description, resume=resume)
            if is_new:
                write_run(run, description, probe, starts)
            ranks.wait()
            with sole_writer(run, RunError) if ranks.is_primary else nullcontext():
                resumed_from = trainer.restore()
                started = time.monotonic()
                trainer.fit(_open_trackers(track, trainer), watchers)
            if ranks.is_primary and not trainer.validated:  # the run was complete already
                trainer.validate()
            return TrainReport(
                run=run,
                steps=config.steps,
                resumed_from=resumed_from,
                num_parameters=sum(part.numel() for part in trainer.agent.parameters()),
                heldout_error=trainer.validated.get("heldout_error"),
                elapsed_s=time.monotonic() - started,
                features_from=data.features_from,
                is_primary=ranks.is_primary,
            )


def _open_trackers(names: Sequence[str], trainer: Trainer) -> list[Tracker]:
    if not trainer.ranks.is_primary:
        return []
    configuration = flat_configuration(trainer.config.model_dump(mode="json"))
    return open_trackers(names, trainer.run, configuration, trainer.step)


@contextmanager
def _open_data(
    paths: Sequence[Location],
    *,
    weights: Sequence[float],
    config: TrainConfig,
    live: bool,
    backbone: str | None,
    device: torch.device,
    ranks: Ranks,
) -> Iterator[tuple[StepData, DataIdentity, Probe, StartFrames]]:
    stores = [FeatureStore.open(path) for path in paths]
    with ExitStack() as opened:
        with unreplaced(stores) as digests:
            for store in stores:
                store.check_digest()
            probe = stores[0].read_probe()
            if live:
                data: StepData = opened.enter_context(
                    open_live_windows(
                        *stores,
                        heldout_share=config.heldout_share,
                        weights=weights,
                        backbone=backbone,
                        device=device,
                    )
                )
            elif config.memory is not None:
                streamed = StreamedWindowData(
                    *stores, config=config, memory=config.memory, ranks=ranks
                )
                data = opened.enter_context(closing(streamed))
            else:
                held = WindowData(*stores, heldout_share=config.heldout_share, weights=weights)
                held.move_to(device)
                data = held
            starts = _join_starts(stores, data.is_heldout.numpy())
        if ranks.is_primary:
            warn_of_leaks(data.leaks)
        identity = DataIdentity(
            stores=_identify(stores, digests, weights),
            fps=stores[0].attributes.fps,
            encoder=stores[0].attributes.encoder,
            probe_digest=probe.digest(),
            start_frames_digest=starts.digest(),
        )
        yield data, identity, probe, starts


def _identify(
    stores: Sequence[FeatureStore], digests: Sequence[str], weights: Sequence[float]
) -> tuple[StoreIdentity, ...]:
    return tuple(
        StoreIdentity(
            name=str(store.attributes.manifest["name"]),
            digest=digest,
            weight=weight,
            manifest=store.attributes.manifest,
        )
        for store, digest, weight in zip(stores, digests, weights, strict=True)
    )


def _join_starts(stores: Sequence[FeatureStore], is_heldout: np.ndarray) -> StartFrames:
    """Join the stores' start frames: those of the training episodes, if they are enough."""
    starts = [store.read_start_frames() for store in stores]
    counts = [len(store.read_episode_ends()) for store in stores]
    firsts = np.cumsum([0, *counts[:-1]])
    frames = np.concatenate([held.frames for held in starts])
    episodes = np.concatenate([held.episodes + n for held, n in zip(starts, firsts, strict=True)])
    trained = np.flatnonzero(~is_heldout[episodes])
    chosen = trained if len(trained) >= ENOUGH_STARTS else np.arange(len(episodes))
    chosen = chosen[spread_evenly(len(chosen), MAX_RUN_STARTS)]
    return StartFrames(frames[chosen], episodes[chosen])
