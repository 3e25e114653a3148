"""One pass over a dataset: every frame through the frozen encoder, once, into a feature store.

Knows readers, the encoder and the store; nothing about training. A run that was stopped goes on at
the first unit without a valid commit record.
"""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8, UInt64
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from pipeline.datasets.base import EpisodeReader
from pipeline.datasets.checksums import verify_checksums
from pipeline.datasets.manifest import Manifest, load_manifest
from pipeline.datasets.manifest_reader import ManifestReader
from pipeline.errors import DatasetError, EncoderMismatchError, StoreError
from pipeline.features.store import FeatureStore, SourceShare, StepArrays, StoreAttributes
from pipeline.features.units import UNIT_ROWS, episode_slices, unit_rows
from pipeline.files import is_vacant, sole_writer
from policy.backbone import DEFAULT_REPOSITORY, FrozenSiglip2, load_backbone
from policy.device import open_device
from policy.preprocess import resize_frames
from policy.spec import FRAME_SIZE, ComputeDtype


class EmbedConfig(BaseModel):
    """What to embed, with which encoder, into which store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest: Path
    """The dataset's manifest."""
    store: Path
    """Folder of the feature store to create or to go on with."""
    backbone: str = DEFAULT_REPOSITORY
    """Hub repository, local folder, or `stand-in`."""
    revision: str | None = None
    """40-hex commit of the hub repository; None is the default repository's pinned one."""
    compute_dtype: ComputeDtype | None = None
    """The tower's dtype; None takes bfloat16 where the hardware has it."""
    device: str = "cpu"
    """torch's name of the device the tower runs on."""


@dataclass(frozen=True)
class EmbedReport:
    """What a finished embedding did."""

    store: Path
    encoder: str
    num_episodes: int
    num_steps: int
    num_views: int
    num_encoded_images: int
    """Images encoded by this run; the rest was in the store already."""
    elapsed_s: float

    def summary(self) -> str:
        """Say it in one line."""
        rate = self.num_encoded_images / self.elapsed_s if self.elapsed_s else 0.0
        return (
            f"{self.store}: {self.num_episodes} episodes, {self.num_steps} steps x "
            f"{self.num_views} views by {self.encoder}; {self.num_encoded_images} images encoded "
            f"now, {rate:.1f} images/s"
        )


def embed_dataset(config: EmbedConfig) -> EmbedReport:
    """Encode every frame of a dataset that is not in the store yet.

    Raises:
        ManifestError, DatasetError, FrameReadError: the dataset cannot be used as described.
        EncoderLoadError: the encoder cannot be loaded.
        EncoderMismatchError: the store was made by another encoder.
        StoreError: the store was made from other data, or is damaged.
    """
    device = open_device(config.device)
    manifest = load_manifest(config.manifest)
    verify_checksums(manifest)
    reader = ManifestReader(manifest)
    try:
        _check_frame_sizes(config.manifest, manifest, reader)
        steps = _read_steps(reader)
        backbone = load_backbone(
            config.backbone,
            revision=config.revision,
            compute_dtype=config.compute_dtype,
            device=device,
        )
        attributes = _describe_store(manifest, reader, backbone)
        store = _open_or_create(config.store, attributes, steps)
        started = time.monotonic()
        with sole_writer(store.path, StoreError):
            _follow_manifest(store, attributes)
            num_rows = _encode_missing_units(store, reader, steps, backbone)
            if not store.is_complete:
                store.mark_complete()
    finally:
        reader.close()
    return EmbedReport(
        store=config.store,
        encoder=backbone.identity.name,
        num_episodes=reader.num_episodes,
        num_steps=store.num_rows,
        num_views=len(reader.view_names),
        num_encoded_images=num_rows * len(reader.view_names),
        elapsed_s=time.monotonic() - started,
    )


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


def _read_steps(reader: EpisodeReader) -> StepArrays:
    episodes = range(reader.num_episodes)
    lengths = [reader.episode_length(episode) for episode in episodes]
    return StepArrays(
        state=np.concatenate([reader.state(episode) for episode in episodes]),
        action=np.concatenate([reader.action(episode) for episode in episodes]),
        timestamp=np.concatenate([reader.timestamp(episode) for episode in episodes]),
        episode_ends=np.cumsum(lengths, dtype=np.int64),
    )


def _describe_store(
    manifest: Manifest, reader: ManifestReader, backbone: FrozenSiglip2
) -> StoreAttributes:
    return StoreAttributes(
        encoder=backbone.identity,
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


def _open_or_create(path: Path, attributes: StoreAttributes, steps: StepArrays) -> FeatureStore:
    if is_vacant(path):
        return FeatureStore.create(path, attributes, steps)
    if not (path / "zarr.json").is_file():
        raise StoreError(f"{path}: holds something that is no feature store; name another --store")
    store = FeatureStore.open(path, allow_incomplete=True, writable=True)
    made_by, ours = store.attributes.encoder, attributes.encoder
    if made_by.fingerprint != ours.fingerprint:
        raise EncoderMismatchError(
            f"{path}: features come from {made_by.name} ({made_by.compute_dtype}, fingerprint "
            f"{made_by.fingerprint[:12]}), this run encodes with {ours.name} "
            f"({ours.compute_dtype}, {ours.fingerprint[:12]}); name another --store or that encoder"
        )
    held = store.read_steps()
    same_rows = store.attributes.manifest_digest == attributes.manifest_digest and all(
        np.array_equal(getattr(held, name), getattr(steps, name))
        for name in ("episode_ends", "state", "action", "timestamp")
    )
    if not same_rows:
        raise StoreError(
            f"{path}: was made from other data than {attributes.manifest['name']} is now "
            f"({len(held.state)} against {len(steps.state)} steps); embed into another --store"
        )
    return store


def _follow_manifest(store: FeatureStore, attributes: StoreAttributes) -> None:
    """Take over splits and weights, which change no row; words alone leave the store as it is."""
    held = store.attributes
    if (held.heldout, held.sources) != (attributes.heldout, attributes.sources):
        store.replace_attributes(attributes)


def _encode_missing_units(
    store: FeatureStore, reader: EpisodeReader, steps: StepArrays, backbone: FrozenSiglip2
) -> int:
    """Encode and commit every unit without a valid record; return the number of rows."""
    valid = store.valid_units()
    _refuse_changed_frames(store, reader, steps, valid)
    missing = [unit for unit in range(store.num_units) if unit not in valid]
    bounds = [unit_rows(unit, store.num_rows) for unit in missing]
    total = sum(stop - start for start, stop in bounds)
    with tqdm(total=total, desc="embed", unit="step", disable=None) as progress:
        for unit, (start, stop) in zip(missing, bounds, strict=True):
            frames = _read_frames(reader, steps, start, stop)
            features = backbone.encode_views(torch.from_numpy(frames)).numpy()
            store.write_unit(unit, features, hash_frames(frames))
            progress.update(stop - start)
    return total


def _refuse_changed_frames(
    store: FeatureStore, reader: EpisodeReader, steps: StepArrays, valid: set[int]
) -> None:
    """Compare the first and last frames of every episode with those that were embedded."""
    held = store.read_frame_hash()
    starts = np.concatenate([[0], steps.episode_ends[:-1]])
    for row in sorted({*starts.tolist(), *(steps.episode_ends - 1).tolist()}):
        if row // UNIT_ROWS not in valid:
            continue
        frames = _read_frames(reader, steps, row, row + 1)
        if not np.array_equal(hash_frames(frames)[0], held[row]):
            part = next(episode_slices(steps.episode_ends, row, row + 1))
            raise StoreError(
                f"{store.path}: frames of {reader.episode_name(part.episode)} at step {part.start} "
                f"are not those that were embedded; embed into another --store"
            )


def _read_frames(
    reader: EpisodeReader, steps: StepArrays, start: int, stop: int
) -> UInt8[np.ndarray, "n v 256 256 3"]:
    """Read the rows [start, stop), every view, resized where the manifest asks for it."""
    rows = []
    for part in episode_slices(steps.episode_ends, start, stop):
        views = reader.frames(part.episode, part.start, part.stop)
        resized = [resize_frames(torch.from_numpy(view)).numpy() for view in views]
        rows.append(np.stack(resized, axis=1))
    return np.concatenate(rows)


def hash_frames(frames: UInt8[np.ndarray, "n v h w 3"]) -> UInt64[np.ndarray, "n v"]:
    """Return a 64-bit BLAKE2b of every frame's pixels."""
    hashes = [
        hashlib.blake2b(np.ascontiguousarray(frame).data, digest_size=8).digest()
        for step in frames
        for frame in step
    ]
    return np.frombuffer(b"".join(hashes), np.uint64).reshape(frames.shape[:2])
