"""One pass over a dataset: every frame through the frozen encoder, once, into a feature store.

Knows readers, the encoder and the store; nothing about training. A run that was stopped goes on at
the first unit without a valid commit record; a dataset that changed has its new frames encoded and
nothing else.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field

from pipeline.datasets.base import EpisodeReader
from pipeline.datasets.manifest.checksums import verify_checksums
from pipeline.datasets.manifest.model import Manifest, load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import DatasetError, FrameReadError
from pipeline.features.encode.executor_choice import ExecutorConfig
from pipeline.features.encode.executors import encode_here, encode_with_workers
from pipeline.features.encode.fill import Tally, units_to_encode
from pipeline.features.encode.known_frames import FrameIndex
from pipeline.features.encode.parts import (
    Part,
    finish_store,
    hold_store,
    require_same_files,
    take_turn,
)
from pipeline.features.encode.stages import Stage, StageClock
from pipeline.features.encode.target import Target, open_target
from pipeline.features.encode.unit_encoder import EncodeCounts, FrameSource, UnitEncoder, read_slots
from pipeline.features.encode.worker import WorkerPlan
from pipeline.features.identity.probe import make_probe
from pipeline.features.identity.source import SourceNote, files_stamp
from pipeline.features.store.attributes import Codec, SourceShare, StoreAttributes
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.layout import is_vacant
from pipeline.features.store.steps import RecordedSteps
from pipeline.features.store.units import SHARD_ABOVE, EpisodeSlice, choose_rows_per_unit
from pipeline.storage.folders import Location, open_folder, resolved
from policy.device import open_device
from policy.encoders.environment import measured_matmul_rate
from policy.encoders.siglip2 import DEFAULT_REPOSITORY, FrozenSiglip2, load_backbone
from policy.spec import FRAME_SHAPE, FRAME_SIZE, ComputeDtype

PROBE_EPISODES: Final = 3  # first, middle and last give the probe a real step each
MOST_PROBED: Final = 20  # episodes tried where those do not read
SHORTEST_RATED_S: Final = 5.0  # seconds of encoding below which its rate says little


class EmbedConfig(BaseModel):
    """What to embed, with which encoder, into which store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest: Path
    """The dataset's manifest."""
    store: Location
    """Where the feature store lies that is created or gone on with: a folder or an address."""
    backbone: str = DEFAULT_REPOSITORY
    """Hub repository, local folder, or `stand-in`."""
    revision: str | None = None
    """40-hex commit of the hub repository; None is the default repository's pinned one."""
    compute_dtype: ComputeDtype | None = None
    """The tower's dtype; None takes bfloat16 where the hardware has it."""
    device: str = "cpu"
    """torch's name of the device the tower runs on."""
    compiled: bool = False
    """Fuse the tower with torch.compile: another engine, minutes of compiling, a C++ compiler."""
    num_variants: int = Field(default=0, ge=0, le=64)
    """Augmented variants of every frame to keep beside it; each costs as much as the frames."""
    codec: Codec = "none"
    """Compression of the features: none, or Blosc (zstd after a bit shuffle)."""
    shard_above: int = Field(default=SHARD_ABOVE, ge=0)
    """Control steps above which a new store has shards of 16,384 steps instead of 256 a file."""
    executor: ExecutorConfig = ExecutorConfig()
    """Who encodes."""
    part: Part | None = None
    """The share of the units that is this command's own; None is all of them."""


@dataclass(frozen=True)
class EmbedReport:
    """What a finished embedding did."""

    store: Location
    encoder: str
    num_episodes: int
    num_steps: int
    num_views: int
    counts: EncodeCounts
    """What became of the frames that this run read."""
    seconds: dict[Stage, float]
    """Time in each stage, of all workers; reading and writing run beside the encoder."""
    elapsed_s: float
    matmul_share: float | None
    """The encoder's rate over the machine's own matrix-product rate; None after a short run, where
    workers encoded, and where others kept the machine too busy to measure it."""
    workers: int
    """How many encoded: 1 in this process, 0 where nothing was missing."""
    remainder: str = ""
    """After a part that was not the last one: which units the store lacks still."""

    def summary(self) -> str:
        """Say what was done, where the time went and, after a part, what is left; a line each."""
        counts = self.counts
        rate = counts.encoded / self.elapsed_s if self.elapsed_s else 0.0
        reused = "".join(
            f", {number} {what}"
            for number, what in ((counts.copied, "kept"), (counts.repeated, "repeated"))
            if number
        )
        total = sum(self.seconds.values())
        shares = ", ".join(
            f"{stage} {100 * spent / total:.0f} %" for stage, spent in self.seconds.items() if total
        )
        workers = f"time, {total:.0f} s of {self.workers} workers" if self.workers > 1 else "time"
        matmul = (
            ""
            if self.matmul_share is None
            else f"; the encoder ran at {100 * self.matmul_share:.0f} % of this machine's "
            "matrix-product rate"
        )
        return (
            f"{self.store}: {self.num_episodes} episodes, {self.num_steps} steps x "
            f"{self.num_views} views by {self.encoder}; {counts.encoded} images encoded"
            f"{reused}, {rate:.1f} images/s\n"
            f"{workers}: {shares or 'none'}{matmul}{self.remainder and chr(10)}{self.remainder}"
        )


def embed_dataset(config: EmbedConfig) -> EmbedReport:
    """Encode every frame of a dataset that is not in the store yet, or one part of them.

    Raises:
        ConfigError, MissingExtraError: the executor cannot be used as asked.
        ManifestError, DatasetError, FrameReadError: the dataset cannot be used as described.
        FailedUnitsError: some frames do not read; everything else is committed.
        EncoderLoadError: the encoder cannot be loaded.
        EncoderMismatchError: the store was made by another encoder.
        StoreError: the store was made from other data, is damaged, or someone else writes it.
        WorkerLostError: workers end again and again.
    """
    config.executor.check()
    part = config.part
    matmul_share: float | None = None
    device = open_device(config.device)
    place = resolved(config.store)  # a store behind a link grows where it lies
    loaded = load_manifest(config.manifest)
    manifest = loaded.manifest
    verify_checksums(loaded)
    note = SourceNote(manifest=config.manifest.absolute(), stamp=files_stamp(loaded.roots))
    reader = ManifestReader(loaded)
    try:
        _check_frame_sizes(config.manifest, manifest, reader)
        steps = RecordedSteps(reader)
        backbone = load_backbone(
            config.backbone,
            revision=config.revision,
            compute_dtype=config.compute_dtype,
            device=device,
            compiled=config.compiled,
        )
        started = time.monotonic()
        attributes = _describe_store(
            config, manifest, reader, backbone, num_rows=int(steps.episode_ends[-1])
        )
        source = FrameSource(reader, steps.episode_ends, config.num_variants)
        with hold_store(place, part):
            target = _open_store(
                config,
                place,
                attributes=attributes,
                steps=steps,
                reader=reader,
                backbone=backbone,
                note=note,
            )
            tally, num_units = Tally(target.store), target.store.num_units
            own = range(num_units) if part is None else part.units(num_units)
            units, index = units_to_encode(target, own, source, note)
            with tally.progress(units):
                if config.executor.is_remote:
                    plan = _plan_worker(config, target.store, index)
                    del backbone, steps, index  # workers have their own; this process stays small
                    pool = config.executor.open_pool(plan)
                    encode_with_workers(
                        pool, config.executor.workers, units, tally.add_whole, target.is_committed
                    )
                else:
                    with UnitEncoder(target.store, source, backbone, index) as encoder:
                        encode_here(encoder, units, tally.add, tally.advance)
                    matmul_share = _matmul_share(tally, backbone)
            tally.add_seconds(source.clock.take())
            tally.refuse_failures()
            with take_turn(place, part):
                store, remainder = finish_store(target, part)
    finally:
        reader.close()
    return EmbedReport(
        store=config.store,
        encoder=attributes.encoder.name,
        num_episodes=reader.num_episodes,
        num_steps=store.num_rows,
        num_views=len(reader.view_names),
        counts=tally.counts,
        seconds=tally.seconds,
        elapsed_s=time.monotonic() - started,
        matmul_share=matmul_share,
        workers=min(config.executor.workers, len(units)),
        remainder=remainder,
    )


def _open_store(
    config: EmbedConfig,
    place: Location,
    *,
    attributes: StoreAttributes,
    steps: RecordedSteps,
    reader: ManifestReader,
    backbone: FrozenSiglip2,
    note: SourceNote,
) -> Target:
    is_part = config.part is not None
    with take_turn(place, config.part):
        made = None
        if is_vacant(open_folder(place)):
            made = make_probe(backbone, _probe_frames(reader))
            FeatureStore.create(place, attributes, steps, made)
        target = open_target(place, attributes, steps, backbone, made, may_grow=not is_part)
        if is_part:
            require_same_files(target.store, note)
    return target


def _plan_worker(config: EmbedConfig, store: FeatureStore, index: FrameIndex) -> WorkerPlan:
    is_folder = Path(config.backbone).is_dir()  # a worker may run in another one
    return WorkerPlan(
        manifest=config.manifest.absolute(),
        store=store.path,
        backbone=str(Path(config.backbone).absolute()) if is_folder else config.backbone,
        revision=config.revision,
        device=config.device,
        compiled=config.compiled,
        threads=config.executor.threads(),
        index=index,
    )


def _matmul_share(tally: Tally, backbone: FrozenSiglip2) -> float | None:
    spent = tally.seconds["encode"]
    if spent < SHORTEST_RATED_S:
        return None
    rate = tally.counts.encoded * backbone.flops_per_image / spent
    dtype = backbone.identity.compute_dtype
    share = rate / measured_matmul_rate(dtype, backbone.device)
    return share if share <= 1 else None


def _check_frame_sizes(path: Path, manifest: Manifest, reader: EpisodeReader) -> None:
    if manifest.resize is not None:
        return
    for episode in range(reader.num_episodes):
        for view in reader.view_names:
            size = reader.frame_size(episode, view)
            if size != FRAME_SIZE:
                raise DatasetError(
                    f"{reader.episode_name(episode)}: view {view} has frames of {size[0]}x"
                    f"{size[1]} pixels, want {FRAME_SIZE[0]}x{FRAME_SIZE[1]}; to have every frame "
                    f"resized, write `resize = [{FRAME_SIZE[0]}, {FRAME_SIZE[1]}]` into {path}"
                )


def _probe_frames(reader: EpisodeReader) -> UInt8[np.ndarray, "q v 256 256 3"]:
    """Read the first step of a few episodes, spread over the dataset; of others if they do not."""
    last = reader.num_episodes - 1
    spread = [round(last * part / (PROBE_EPISODES - 1)) for part in range(PROBE_EPISODES)]
    tried = dict.fromkeys([*spread, *range(min(reader.num_episodes, MOST_PROBED))])
    wanted = min(PROBE_EPISODES, reader.num_episodes)
    found: list[np.ndarray] = []
    for episode in tried:
        if len(found) < wanted:
            part = EpisodeSlice(episode, 0, 1)
            with suppress(FrameReadError):  # its unit will say so
                found.append(read_slots(reader, part, num_variants=0, clock=StageClock()))
    nothing = np.zeros((0, len(reader.view_names), *FRAME_SHAPE), np.uint8)
    return np.concatenate([nothing, *found])


def _describe_store(
    config: EmbedConfig,
    manifest: Manifest,
    reader: ManifestReader,
    backbone: FrozenSiglip2,
    *,
    num_rows: int,
) -> StoreAttributes:
    return StoreAttributes(
        encoder=backbone.identity,
        engine=backbone.engine,
        codec=config.codec,
        num_variants=config.num_variants,
        rows_per_unit=choose_rows_per_unit(num_rows, config.shard_above),
        view_names=manifest.view_names,
        fps=manifest.fps,
        manifest=manifest.to_dict(),
        manifest_digest=manifest.digest(),
        sources=tuple(
            SourceShare(num_episodes=reader.source_of.count(source), weight=place.weight)
            for source, place in enumerate(manifest.places)
        ),
        heldout=reader.heldout,
    )
