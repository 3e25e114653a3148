"""One pass over a dataset: every frame through the frozen encoder, once, into a feature store.

A run that was stopped resumes at the first unit without a valid commit record; a dataset that
changed has its new frames encoded and nothing else.
"""

import importlib.util
import logging
import time
from collections.abc import Generator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import Field
from tqdm import tqdm

from pipeline.datasets.manifest.model import Manifest, load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.datasets.manifest.sources import verify_checksums
from pipeline.errors import ConfigError, DatasetError, FrameReadError
from pipeline.features.encode.frames import FrameSource, free_cores, read_slots
from pipeline.features.encode.instructions import Instructions
from pipeline.features.encode.parts import (
    Part,
    finish_store,
    hold_store,
    require_same_files,
    take_turn,
)
from pipeline.features.encode.report import EmbedReport, Tally
from pipeline.features.encode.target import (
    Missing,
    Target,
    continue_store,
    find_missing,
    open_target,
)
from pipeline.features.encode.unit_encoder import UnitEncoder, UnitOutcome
from pipeline.features.identity.probe import make_probe
from pipeline.features.identity.source import SourceNote, files_stamp
from pipeline.features.store.attributes import Codec, SourceShare, StoreAttributes
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.layout import ROOT, is_vacant
from pipeline.features.store.start_frames import MAX_STARTS, shrink_frames, spread_evenly
from pipeline.features.store.steps import StepArrays
from pipeline.features.store.units import (
    SHARD_ABOVE,
    EpisodeSlice,
    choose_rows_per_unit,
    episode_slices,
)
from pipeline.storage.location import Location
from pipeline.storage.open import open_folder
from policy.device import open_device
from policy.encoders.base import EncoderSettings, ImageEncoder, default_images_per_pass
from policy.encoders.registry import DEFAULT_ENCODER, load_encoder
from policy.errors import MissingExtraError, install_command
from policy.spec import FRAME_SHAPE, FRAME_SIZE, ComputeDtype, FrozenModel

logger = logging.getLogger(__name__)

PROBE_EPISODES: Final = 3  # first, middle and last give the probe a real step each
SAMPLED_STEPS: Final = 64  # control steps whose views a PCA basis is fitted to
MOST_PROBED: Final = 20  # episodes tried where those do not read


class EmbedConfig(FrozenModel):
    """The settings of one embedding."""

    manifest: Path
    store: Location
    """Folder or address of the feature store that is created or resumed."""
    encoder: str = DEFAULT_ENCODER
    """A registered encoder, a repository on the Hugging Face hub, or a local folder."""
    features: tuple[str, ...] = ()
    """Names of the features to cache; empty: the store's, or the encoder's own default."""
    text_encoder: str | None = None
    """What makes vectors of the dataset's instructions: a registered text encoder, a repository or
    a local folder; None: the store's, or none."""
    revision: str | None = None
    """40-hex commit of the hub repository; None is the default repository's pinned one."""
    compute_dtype: ComputeDtype | None = None
    """The encoder's dtype; None is its own choice, bfloat16 for SigLIP2 if the hardware has it."""
    device: str = "auto"
    """Where the encoder runs: `auto` (a GPU if there is one), or torch's name of a device."""
    images_per_pass: int | None = Field(default=None, ge=1)
    """Images per forward pass, at embedding and live; None: one step's views on a CPU, more on a
    GPU. Belongs to the store."""
    compiled: bool = False
    """Fuse the encoder with torch.compile: another compute environment, minutes of compiling."""
    num_variants: int = Field(default=0, ge=0, le=64)
    """Augmented variants of every frame to store next to it; each costs as much as the frames."""
    codec: Codec = "none"
    """Compression of the features: none, or Blosc (zstd after a bit shuffle)."""
    shard_above: int = Field(default=SHARD_ABOVE, ge=0)
    """Control steps above which a new store has shards of many chunks, not 256 steps per file."""
    ray_workers: int | None = Field(default=None, ge=1)
    """Encode with so many Ray actors, each with as many threads as torch has in this process, and
    a GPU if `device` is one. RAY_ADDRESS names a cluster, else Ray is started on this machine.
    None encodes in this process."""
    read_workers: int | None = Field(default=None, ge=0)
    """Processes that decode, resize and hash frames; 0 is a thread of this process, as in each of
    Ray's actors. None: 0 for an encoder on a CPU, which needs the cores itself, else the cores."""
    part: Part | None = None
    """The share of the units that is this command's own; None is all of them."""


def embed_dataset(config: EmbedConfig) -> EmbedReport:
    """Encode every frame of a dataset that is not in the store yet, or one part of them.

    Raises:
        ConfigError, MissingExtraError: Ray cannot be used as configured.
        ManifestError, DatasetError, FrameReadError: the dataset cannot be used as described.
        FailedUnitsError: some frames do not read; everything else is committed.
        EncoderLoadError: the encoder cannot be loaded.
        EncoderMismatchError: the store was made by another encoder.
        StoreError: the store was made from other data, is damaged, or is being written.
        WorkerLostError: a process that reads frames was killed, or Ray's workers end again and
            again.
    """
    if config.ray_workers is not None and importlib.util.find_spec("ray") is None:
        raise MissingExtraError(f"--ray-workers: Ray is not installed; {install_command('ray')}")
    part = config.part
    device = open_device(config.device)
    path = config.store.resolve()  # a store behind a link grows where it is
    loaded = load_manifest(config.manifest)
    manifest = loaded.manifest
    verify_checksums(loaded)
    note = SourceNote(manifest=config.manifest.absolute(), stamp=files_stamp(loaded.roots))
    with closing(ManifestReader(loaded)) as reader:
        _check_frame_sizes(config.manifest, manifest, reader)
        steps = StepArrays.recorded(reader)
        is_gpu, num_workers = device.type == "cuda", config.read_workers
        source = FrameSource(
            reader,
            steps.episode_ends,
            config.num_variants,
            num_workers=free_cores() * is_gpu if num_workers is None else num_workers,
            is_pinned=is_gpu,
        )
        with hold_store(path, part):
            encoder = _load_encoder(config, path, device, len(reader.view_names))
            instructions = Instructions.read(reader, config.text_encoder, path)
            started = time.monotonic()
            target = _open_store(
                config,
                path,
                manifest,
                reader=reader,
                steps=steps,
                encoder=encoder,
                instructions=instructions,
                note=note,
            )
            num_units = target.store.num_units
            own = range(num_units) if part is None else part.units(num_units)
            missing = find_missing(
                target, own, source, note, place_matters=encoder.environment.place_matters
            )
            logger.info(
                "embedding %d episodes, %d steps x %d views, with %s on %s; %d of %d units left",
                reader.num_episodes,
                target.store.num_rows,
                len(reader.view_names),
                encoder.identity.name,
                device,
                len(missing.units),
                len(own),
            )
            tally = Tally(target.store)
            tally.seconds["compare"] = missing.compare_s
            with tally.progress(missing.units):
                if config.ray_workers is None:
                    units = UnitEncoder(target.store, source, encoder, missing.index)
                    outcomes = units.encode(missing.units, tally.advance)
                else:
                    del encoder, steps  # each worker has its own
                    outcomes = _encode_with_ray(config, device, target.store, missing)
                with closing(outcomes):
                    for outcome in outcomes:
                        tally.add(outcome)
                        if config.ray_workers is not None:
                            tally.advance(target.store.num_unit_rows(outcome.unit))
            tally.refuse_failures()
            with take_turn(path, part):
                store, remainder = finish_store(
                    target, part, partial(_write_rest, reader, instructions)
                )
    return EmbedReport(
        store=config.store,
        encoder=store.encoder.name + ", NOT pretrained" * (not store.encoder.pretrained),
        features=store.encoder.feature_names,
        has_instructions=instructions.encoder is not None and len(instructions.words) > 1,
        num_episodes=reader.num_episodes,
        num_steps=store.num_rows,
        num_views=len(reader.view_names),
        counts=tally.counts,
        seconds=tally.seconds,
        elapsed_s=time.monotonic() - started,
        workers=min(config.ray_workers or 1, len(missing.units)),
        remainder=remainder,
    )


def _encode_with_ray(
    config: EmbedConfig, device: torch.device, store: FeatureStore, missing: Missing
) -> Generator[UnitOutcome]:
    from pipeline.features.encode.ray_pool import WorkerPlan, encode_with_ray  # noqa: PLC0415  an extra

    assert config.ray_workers is not None
    is_folder = Path(config.encoder).is_dir()  # a worker may run in another working directory
    plan = WorkerPlan(
        manifest=config.manifest.absolute(),
        store=store.path,
        encoder=str(Path(config.encoder).absolute()) if is_folder else None,
        device=str(device),
        compiled=config.compiled,
        threads=torch.get_num_threads(),
        index=missing.index,
    )
    return encode_with_ray(plan, config.ray_workers, missing.units)


def _load_encoder(
    config: EmbedConfig, path: Location, device: torch.device, num_views: int
) -> ImageEncoder:
    """Load the encoder as configured, and else as the existing store has it."""
    features = config.features
    images_per_pass = config.images_per_pass or default_images_per_pass(device, num_views)
    if open_folder(path).exists(ROOT):
        held = FeatureStore.open(path, allow_incomplete=True)
        features = features or held.encoder.feature_names
        kept = held.attributes.environment.images_per_pass
        images_per_pass = config.images_per_pass or kept
    if images_per_pass < num_views:
        raise ConfigError(
            f"images_per_pass: expected at least {num_views}, the views of one step, found "
            f"{images_per_pass}"
        )
    return load_encoder(
        EncoderSettings(
            name=config.encoder,
            images_per_pass=images_per_pass,
            features=features,
            revision=config.revision,
            compute_dtype=config.compute_dtype,
            device=device,
            compiled=config.compiled,
        )
    )


def _open_store(
    config: EmbedConfig,
    path: Location,
    manifest: Manifest,
    *,
    reader: ManifestReader,
    steps: StepArrays,
    encoder: ImageEncoder,
    instructions: Instructions,
    note: SourceNote,
) -> Target:
    is_part = config.part is not None
    with take_turn(path, config.part):
        made = None
        is_new = is_vacant(open_folder(path))
        if not is_new:
            continue_store(path, encoder)
        elif encoder.unfitted:
            encoder.fit(_sample_frames(reader, steps))
        attributes = _describe_store(config, manifest, reader, encoder, steps)
        attributes = attributes.model_copy(update=instructions.attributes())
        if is_new:
            made = make_probe(encoder, _probe_frames(reader))
            FeatureStore.create(path, attributes, steps, made, encoder.bases)
        target = open_target(path, attributes, steps, encoder, made, may_grow=not is_part)
        if is_part:
            require_same_files(target.store, note)
    return target


def _check_frame_sizes(path: Path, manifest: Manifest, reader: ManifestReader) -> None:
    if manifest.resize is not None:
        return
    for episode in range(reader.num_episodes):
        for view in reader.view_names:
            size = reader.frame_size(episode, view)
            if size != FRAME_SIZE:
                raise DatasetError(
                    f"{reader.episode_name(episode)}: view {view}: expected frames of "
                    f"{FRAME_SIZE[0]}x{FRAME_SIZE[1]} pixels, found {size[0]}x{size[1]}; to resize "
                    f"all frames, write `resize = [{FRAME_SIZE[0]}, {FRAME_SIZE[1]}]` into {path}"
                )


def _probe_frames(reader: ManifestReader) -> UInt8[np.ndarray, "q v 256 256 3"]:
    """Read the first step of a few episodes, spread over the dataset; of others if they do not."""
    last = reader.num_episodes - 1
    spread = [round(last * i / (PROBE_EPISODES - 1)) for i in range(PROBE_EPISODES)]
    tried = dict.fromkeys([*spread, *range(min(reader.num_episodes, MOST_PROBED))])
    wanted = min(PROBE_EPISODES, reader.num_episodes)
    found: list[np.ndarray] = []
    for episode in tried:
        if len(found) < wanted:
            with suppress(FrameReadError):  # its unit fails with this error
                found.append(read_slots(reader, EpisodeSlice(episode, 0, 1), num_variants=0))
    nothing = np.zeros((0, len(reader.view_names), *FRAME_SHAPE), np.uint8)
    return np.concatenate([nothing, *found])


def _sample_frames(reader: ManifestReader, steps: StepArrays) -> UInt8[np.ndarray, "n 256 256 3"]:
    """Read every view of steps spread over the dataset, without unreadable ones."""
    ends = steps.episode_ends
    rows = np.unique(np.linspace(0, ends[-1] - 1, SAMPLED_STEPS).astype(np.int64))
    found: list[np.ndarray] = []
    for row in tqdm(rows.tolist(), desc="sample", unit="step", disable=None):
        [step] = episode_slices(ends, row, row + 1)
        with suppress(FrameReadError):  # its unit fails with this error
            found.append(read_slots(reader, step, num_variants=0)[0])
    if not found:
        raise FrameReadError(
            f"{reader.episode_name(0)} and others: none of {len(rows)} sampled steps can be read; "
            "run `vla-data check` on the dataset"
        )
    return np.concatenate(found)


def _write_rest(reader: ManifestReader, instructions: Instructions, store: FeatureStore) -> None:
    """Write the vectors of instructions, and small first frames of episodes over the dataset."""
    if instructions.encoder is not None:
        store.write_instructions(instructions.encoder.encode(instructions.words))
    chosen = spread_evenly(reader.num_episodes, MAX_STARTS).tolist()
    starts = [EpisodeSlice(episode, 0, 1) for episode in chosen]
    frames = [shrink_frames(read_slots(reader, start, num_variants=0)) for start in starts]
    store.write_start_frames(np.concatenate(frames))


def _describe_store(
    config: EmbedConfig,
    manifest: Manifest,
    reader: ManifestReader,
    encoder: ImageEncoder,
    steps: StepArrays,
) -> StoreAttributes:
    attributes = StoreAttributes(
        encoder=encoder.identity,
        environment=encoder.environment,
        codec=config.codec,
        num_variants=config.num_variants,
        view_names=manifest.view_names,
        fps=manifest.fps,
        fit=manifest.fit,
        manifest=manifest.to_dict(),
        manifest_digest=manifest.digest(),
        sources=tuple(
            SourceShare(num_episodes=reader.source_of.count(number), weight=source.weight)
            for number, source in enumerate(manifest.data_sources)
        ),
        validation=reader.validation,
        fitted=tuple(sorted(encoder.bases)),
    )
    rows_per_unit = choose_rows_per_unit(
        int(steps.episode_ends[-1]), config.shard_above, attributes.bytes_per_row
    )
    return attributes.model_copy(update={"rows_per_unit": rows_per_unit})
