"""One pass over a dataset: every frame through the frozen encoder, once, into a feature store.

A run that was stopped resumes at the first unit without a valid commit record; a dataset that
changed has its new frames encoded and nothing else.
"""

import importlib.util
import logging
import time
from contextlib import closing
from dataclasses import dataclass

import torch
from tqdm import tqdm

from pipeline.datasets.manifest.model import load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.datasets.manifest.sources import verify_checksums
from pipeline.errors import ConfigError, FailedUnitsError
from pipeline.features.encode.config import EmbedConfig
from pipeline.features.encode.dataset import (
    check_frame_sizes,
    describe_store,
    probe_frames,
    sample_frames,
)
from pipeline.features.encode.frames import FrameSource, free_cores
from pipeline.features.encode.target import (
    Target,
    continue_store,
    find_missing,
    finish_store,
    hold_store,
    open_target,
    require_same_files,
    take_turn,
)
from pipeline.features.encode.unit_encoder import STAGES, EncodeCounts, Stage, UnitEncoder
from pipeline.features.identity.encoder import load_text_like
from pipeline.features.identity.probe import make_probe
from pipeline.features.identity.source import SourceNote, files_stamp
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.layout import ROOT, is_vacant
from pipeline.features.store.steps import StepArrays
from pipeline.progress import Estimate
from pipeline.storage.location import Location
from pipeline.storage.open import open_folder
from policy.device import open_device
from policy.encoders.base import EncoderSettings, ImageEncoder, default_images_per_pass
from policy.encoders.registry import load_encoder, load_text_encoder
from policy.encoders.text import TextEncoder, TextSettings
from policy.errors import MissingExtraError, install_command

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbedReport:
    """The result of a finished embedding."""

    store: Location
    encoder: str
    """Its name, and a warning if its weights are random."""
    features: tuple[str, ...]
    """Names of the features in the store."""
    has_instructions: bool
    """Whether it has vectors of several instructions."""
    num_episodes: int
    num_steps: int
    num_views: int
    counts: EncodeCounts
    seconds: dict[Stage, float]
    """Time in each stage, of all workers; reading and writing overlap with encoding."""
    elapsed_s: float
    workers: int
    """How many encoded: 1 in this process, 0 if nothing was missing."""
    remainder: str = ""
    """After a part that was not the last one: which units are missing."""

    def summary(self) -> str:
        """Return a line with counts, one with times, and what is missing or comes next."""
        counts, total = self.counts, sum(self.seconds.values())
        kept = f", {counts.copied} kept" if counts.copied else ""
        repeated = f", {counts.repeated} repeated" if counts.repeated else ""
        shares = ", ".join(
            f"{stage} {100 * spent / total:.0f} %" for stage, spent in self.seconds.items() if spent
        )
        workers = f"time, {total:.0f} s of {self.workers} workers" if self.workers > 1 else "time"
        lines = [
            f"{self.store}: {self.num_episodes} episodes, {self.num_steps} steps x "
            f"{self.num_views} views by {self.encoder}; {counts.encoded} images encoded"
            f"{kept}{repeated}, {counts.encoded / self.elapsed_s:.1f} images/s",
            f"{workers}: {shares or 'none'}",
            self.remainder,
        ]
        return "\n".join(filter(None, lines))


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
    device = open_device(config.device)
    path = config.store.resolve()  # a store behind a link grows where it is
    loaded = load_manifest(config.manifest)
    verify_checksums(loaded)
    stamp = files_stamp(loaded.roots, path)
    note = SourceNote(manifest=config.manifest.absolute(), stamp=stamp)
    with closing(ManifestReader(loaded)) as reader:
        check_frame_sizes(config.manifest, reader)
        steps = StepArrays.recorded(reader)
        with hold_store(path, config.part):
            is_store = open_folder(path).exists(ROOT)
            held = FeatureStore.open(path, allow_incomplete=True) if is_store else None
            encoder = _load_encoder(config, held, device, len(reader.view_names))
            text_encoder = _load_text_encoder(config, held, reader)
            started = time.monotonic()
            target = _open_store(
                config, path, reader, steps, encoder=encoder, text_encoder=text_encoder, note=note
            )
            counts, seconds, workers = _encode_missing(config, reader, target, encoder, note)
            with take_turn(path, config.part):
                store, remainder = finish_store(target, config.part, reader, text_encoder)
    return EmbedReport(
        store=config.store,
        encoder=store.encoder.name + ", NOT pretrained" * (not store.encoder.pretrained),
        features=store.encoder.feature_names,
        has_instructions=text_encoder is not None and len(store.attributes.instructions) > 1,
        num_episodes=reader.num_episodes,
        num_steps=store.num_rows,
        num_views=len(reader.view_names),
        counts=counts,
        seconds=seconds,
        elapsed_s=time.monotonic() - started,
        workers=workers,
        remainder=remainder,
    )


def _encode_missing(
    config: EmbedConfig,
    reader: ManifestReader,
    target: Target,
    encoder: ImageEncoder,
    note: SourceNote,
) -> tuple[EncodeCounts, dict[Stage, float], int]:
    """Encode this command's missing units; return counts, times and the number of encoders."""
    store, device = target.store, encoder.device
    is_gpu, num_workers = device.type == "cuda", config.read_workers
    source = FrameSource(
        reader,
        store.read_episode_ends(),
        config.num_variants,
        num_workers=free_cores() * is_gpu if num_workers is None else num_workers,
        is_pinned=is_gpu,
    )
    own = range(store.num_units) if config.part is None else config.part.units(store.num_units)
    place_matters = encoder.environment.place_matters
    missing, failed, index, compare_s = find_missing(
        target, own, source, note, place_matters=place_matters
    )
    logger.info(
        "embedding %d episodes, %d steps x %d views, with %s on %s; %d of %d units left",
        reader.num_episodes,
        store.num_rows,
        len(reader.view_names),
        encoder.identity.name,
        device,
        len(missing),
        len(own),
    )
    counts, seconds = EncodeCounts(), dict.fromkeys(STAGES, 0.0) | {"compare": compare_s}
    total = sum(map(store.num_unit_rows, missing))
    estimate = Estimate(total, "step")
    with tqdm(total=total, desc="embed", unit="step", disable=None) as bar:

        def advance(steps: int) -> None:
            bar.update(steps)
            estimate.advance(steps)

        if config.ray_workers is None:
            outcomes = UnitEncoder(store, source, encoder, index).encode(missing, advance)
        else:
            from pipeline.features.encode.ray_pool import encode_with_ray  # noqa: PLC0415  an extra

            outcomes = encode_with_ray(config, store.path, device, missing, index)
        with closing(outcomes):
            for outcome in outcomes:
                counts.add(outcome.counts)
                for stage, spent in outcome.seconds.items():
                    seconds[stage] += spent
                if outcome.failure is not None:
                    failed[outcome.unit] = outcome.failure
                if config.ray_workers is not None:
                    advance(store.num_unit_rows(outcome.unit))
    if failed:
        reasons = [f"unit {unit}: {' '.join(failed[unit].split())}" for unit in sorted(failed)]
        raise FailedUnitsError(
            f"{store.path}: {len(failed)} of {len(own)} units failed, the others are "
            f"committed; correct these files and run the same command again; the first is "
            f"{reasons[0]}",
            reasons,
        )
    return counts, seconds, min(config.ray_workers or 1, len(missing))


def _load_encoder(
    config: EmbedConfig, held: FeatureStore | None, device: torch.device, num_views: int
) -> ImageEncoder:
    """Load the encoder as configured, and else as the existing store has it."""
    features, images_per_pass = config.features, config.images_per_pass
    compute_dtype = config.compute_dtype or (held.encoder.compute_dtype if held else None)
    if held is not None:
        features = features or held.encoder.feature_names
        images_per_pass = images_per_pass or held.attributes.environment.images_per_pass
    images_per_pass = images_per_pass or default_images_per_pass(device, num_views)
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
            compute_dtype=compute_dtype,
            device=device,
            compiled=config.compiled,
        )
    )


def _load_text_encoder(
    config: EmbedConfig, held: FeatureStore | None, reader: ManifestReader
) -> TextEncoder | None:
    """Load the text encoder as configured, and else that of the existing store, if it has one."""
    if not any(map(reader.instruction, range(reader.num_episodes))):
        if config.text_encoder is None:
            return None
        raise ConfigError(
            "--text-encoder: expected a dataset with instructions, found none in its files; "
            "write `instruction` into the manifest, or leave the option out"
        )
    if config.text_encoder is not None:
        return load_text_encoder(TextSettings(name=config.text_encoder))
    if held is None or held.attributes.text_encoder is None:
        return None
    return load_text_like(held.attributes.text_encoder, name=None, where=str(held.path))


def _open_store(
    config: EmbedConfig,
    path: Location,
    reader: ManifestReader,
    steps: StepArrays,
    *,
    encoder: ImageEncoder,
    text_encoder: TextEncoder | None,
    note: SourceNote,
) -> Target:
    with take_turn(path, config.part):
        made = None
        is_new = is_vacant(open_folder(path))
        if not is_new:
            held = continue_store(path, encoder)
        elif encoder.unfitted:
            encoder.fit(sample_frames(reader, steps.episode_ends))
        attributes = describe_store(config, reader, encoder, text_encoder)
        if is_new:
            made = make_probe(encoder, probe_frames(reader))
            held = FeatureStore.create(path, attributes, steps, made, encoder.bases)
        target = open_target(held, attributes, steps, encoder, made, may_grow=config.part is None)
        if config.part is not None:
            require_same_files(target.store, note)
    return target
