"""Whether a store holds what its encoder makes of its dataset: random rows, encoded again.

Knows stores, datasets and the encoder; the frames take the way that embedding and rollout give
them. On the engine that computed a row every bit must come back; on another one each feature must
lie within the tolerance of the store's probe.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int64, UInt8, UInt64
from tqdm import tqdm

from pipeline.datasets.base import EpisodeReader
from pipeline.errors import StoreError
from pipeline.features.encode.frames import hash_frames, read_slots
from pipeline.features.identity.dataset import open_source
from pipeline.features.identity.encoder import load_same_encoder
from pipeline.features.identity.probe import engine_differences, relative_l2
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.records import record_name
from pipeline.features.store.units import EpisodeSlice, episode_slices
from pipeline.storage.folders import Location
from policy.device import open_device
from policy.encoders.environment import EngineRecord
from policy.encoders.siglip2 import FrozenSiglip2
from policy.spec import FRAME_SHAPE


@dataclass(frozen=True)
class Distances:
    """How far features are from those they should be."""

    max_abs: float
    """Largest difference of a value."""
    relative_l2_mean: float
    relative_l2_worst: float
    cosine_mean: float
    cosine_worst: float
    equal_share: float
    """Share of values that are equal."""

    @classmethod
    def between(
        cls, found: Float[np.ndarray, "n v 768"], expected: Float[np.ndarray, "n v 768"]
    ) -> "Distances":
        """Compare features row by row; the arithmetic is in float64."""
        ours, theirs = found.astype(np.float64), expected.astype(np.float64)
        lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
        cosine = (ours * theirs).sum(axis=-1) / lengths
        relative = relative_l2(found, expected)
        return cls(
            max_abs=float(np.abs(ours - theirs).max()),
            relative_l2_mean=float(relative.mean()),
            relative_l2_worst=float(relative.max()),
            cosine_mean=float(cosine.mean()),
            cosine_worst=float(cosine.min()),
            equal_share=float((found == expected).mean()),
        )


@dataclass(frozen=True)
class VerifyReport:
    """What encoding random rows of a store again showed."""

    store: Location
    damaged_units: tuple[int, ...]
    """Units that were committed and are not valid any more; no step of them is drawn."""
    num_steps: int
    num_images: int
    num_committed_steps: int
    """The steps that were drawn from."""
    distances: Distances | None
    """None where no unit is valid, so that nothing could be compared."""
    worst: str
    """Names the farthest feature: episode, step and view; empty without any."""
    tolerance: float
    """Largest relative L2 allowed on another engine."""
    num_exact_steps: int
    """Steps that this very engine had computed, so that every bit must be equal."""
    num_broken_steps: int
    """Those of them that are not."""
    other_engine: tuple[str, ...]
    """In what this engine differs from the one of the store's probe."""
    changed: tuple[str, ...]
    """Frames of the dataset whose pixels are not those that were embedded."""

    @property
    def is_within_tolerance(self) -> bool:
        """Whether the store holds what it should."""
        if self.damaged_units or self.distances is None:
            return False
        is_near = self.distances.relative_l2_worst <= self.tolerance
        return is_near and not self.num_broken_steps and not self.changed

    def summary(self) -> str:
        """Say it in a line a figure, the verdict last."""
        found = self.distances
        lines = [
            f"{self.num_images} images of {self.num_steps} random steps out of "
            f"{self.num_committed_steps}, encoded again"
        ]
        if found is not None:
            lines += [
                f"max abs       {found.max_abs:.3g}",
                f"relative L2   mean {found.relative_l2_mean:.3g}, worst "
                f"{found.relative_l2_worst:.3g} ({self.worst})",
                f"cosine        mean {found.cosine_mean:.9f}, worst {found.cosine_worst:.9f}",
                f"equal float16 {found.equal_share:.4%}",
            ]
        if self.damaged_units:
            lines.append(
                f"{len(self.damaged_units)} units are damaged, want none; run vla-embed again to "
                f"encode them anew: unit {', '.join(map(str, self.damaged_units))}"
            )
        if self.other_engine:
            lines.append(f"this engine is not the store's: {'; '.join(self.other_engine)}")
        if self.changed:
            lines.append(
                f"{len(self.changed)} frames of the dataset are not those that were embedded, the "
                f"first is {self.changed[0]}"
            )
        if self.num_broken_steps:
            lines.append(
                f"{self.num_broken_steps} of {self.num_exact_steps} steps that this engine had "
                f"computed differ, want every bit equal"
            )
        exact = f"{self.num_exact_steps} steps bit for bit, " if self.num_exact_steps else ""
        failed = "DAMAGED" if self.damaged_units else "OUT OF TOLERANCE"
        verdict = "as it should be" if self.is_within_tolerance else failed
        allowed = f"{exact}relative L2 up to {self.tolerance:.2g} on other engines"
        return "\n".join([*lines, f"{self.store}: {verdict} ({allowed})"])


def verify_store(
    store_path: Location,
    manifest: Path | None,
    *,
    sample: int,
    seed: int,
    backbone: str | None = None,
    device: str = "cpu",
) -> VerifyReport:
    """Encode random committed rows of a store again, from the dataset.

    Every unit is compared with its commit record, and the damaged ones are reported.

    Args:
        store_path: the store, complete or not.
        manifest: the dataset's; None takes the one that the store was made from.
        sample: steps to encode, every view and variant of each; all where fewer are committed.
        seed: decides which.
        backbone: where the encoder lies now; None takes the name in the store.
        device: torch's name of the device the tower runs on.

    Raises:
        StoreError: there is no store, no row of it is committed, it was made from other data, or
            its dataset is not known.
        ManifestError, DatasetError, FrameReadError: the dataset cannot be read.
        EncoderLoadError, EncoderMismatchError: its encoder cannot be loaded.
    """
    opened = open_device(device)
    store = FeatureStore.open(store_path, allow_incomplete=True)
    valid = store.valid_units()
    damaged = _damaged_units(store, valid)
    if not valid and not damaged:
        raise StoreError(f"{store_path}: no unit is committed yet; run vla-embed")
    if not valid:
        return _nothing_to_compare(store, damaged)
    reader = open_source(store, manifest)
    try:
        encoder = load_same_encoder(
            store.attributes.encoder, backbone, where=str(store_path), device=opened
        )
        committed = np.concatenate([np.arange(*store.unit_rows(unit)) for unit in sorted(valid)])
        rows = np.random.default_rng(seed).permutation(committed)[:sample]
        rows.sort()
        return _compare(store, reader, encoder, rows, num_committed=len(committed), damaged=damaged)
    finally:
        reader.close()


def _damaged_units(store: FeatureStore, valid: set[int]) -> tuple[int, ...]:
    """Return the units that were committed and do not hold what their record says, in order."""
    return tuple(
        unit
        for unit in range(store.num_units)
        if unit not in valid and (store.is_complete or store.folder.exists(record_name(unit)))
    )


def _nothing_to_compare(store: FeatureStore, damaged: tuple[int, ...]) -> VerifyReport:
    return VerifyReport(
        store=store.path,
        damaged_units=damaged,
        num_steps=0,
        num_images=0,
        num_committed_steps=0,
        distances=None,
        worst="",
        tolerance=store.read_probe().tolerance,
        num_exact_steps=0,
        num_broken_steps=0,
        other_engine=(),
        changed=(),
    )


def _compare(
    store: FeatureStore,
    reader: EpisodeReader,
    encoder: FrozenSiglip2,
    rows: Int64[np.ndarray, " n"],
    *,
    num_committed: int,
    damaged: tuple[int, ...],
) -> VerifyReport:
    probe, ends = store.read_probe(), store.read_steps().episode_ends
    places = [next(episode_slices(ends, row, row + 1)) for row in rows.tolist()]
    num_variants = store.attributes.num_variants
    ours, hashes = _encode(reader, encoder, places, num_variants)
    theirs, held_hashes = _read_rows(store, rows)
    slots = [
        f"view {view}{f', variant {variant}' if variant else ''}"
        for variant in range(1 + num_variants)
        for view in reader.view_names
    ]
    names = [
        [f"{reader.episode_name(p.episode)}, step {p.start}, {slot}" for slot in slots]
        for p in places
    ]
    worst = np.unravel_index(int(relative_l2(ours, theirs).argmax()), ours.shape[:2])
    is_changed = hashes != held_hashes
    is_exact = _computed_by(store, encoder.engine, rows)
    is_equal = (ours == theirs).all(axis=(1, 2))
    return VerifyReport(
        store=store.path,
        damaged_units=damaged,
        num_steps=len(rows),
        num_images=is_changed.size,
        num_committed_steps=num_committed,
        distances=Distances.between(ours, theirs),
        worst=names[worst[0]][worst[1]],
        tolerance=probe.tolerance,
        num_exact_steps=int(is_exact.sum()),
        num_broken_steps=int((is_exact & ~is_equal).sum()),
        other_engine=tuple(engine_differences(probe.engine, encoder.engine)),
        changed=tuple(names[row][view] for row, view in np.argwhere(is_changed)),
    )


def _encode(
    reader: EpisodeReader, encoder: FrozenSiglip2, places: list[EpisodeSlice], num_variants: int
) -> tuple[Float16[np.ndarray, "n s 768"], UInt64[np.ndarray, "n s"]]:
    """Encode steps, variants included; return features and the hashes of their frames."""
    per_pass = encoder.engine.steps_per_pass
    found, hashes = [], []
    with tqdm(total=len(places), desc="verify", unit="step", disable=None) as progress:
        for first in range(0, len(places), per_pass):
            parts = places[first : first + per_pass]
            read = (read_slots(reader, p, num_variants=num_variants) for p in parts)
            frames: UInt8[np.ndarray, "n s 256 256 3"] = np.concatenate(list(read))
            hashes.append(hash_frames(frames))
            # As many frames a pass as there are views, whatever variants lie beside them.
            passes = frames.reshape(-1, len(reader.view_names), *FRAME_SHAPE)
            features = encoder.encode_views(torch.from_numpy(passes)).numpy()
            found.append(features.reshape(*frames.shape[:2], -1))
            progress.update(len(parts))
    return np.concatenate(found), np.concatenate(hashes)


def _read_rows(
    store: FeatureStore, rows: Int64[np.ndarray, " n"]
) -> tuple[Float16[np.ndarray, "n s 768"], UInt64[np.ndarray, "n s"]]:
    """Read features and frame hashes of some rows, variants included; `rows` ascend."""
    units, within = np.divmod(rows, store.attributes.rows_per_unit)
    places = [(int(unit), within[units == unit]) for unit in np.unique(units)]
    features = [store.read_unit_features(unit)[within] for unit, within in places]
    hashes = [store.read_unit_hashes(unit)[within] for unit, within in places]
    return np.concatenate(features), np.concatenate(hashes)


def _computed_by(
    store: FeatureStore, engine: EngineRecord, rows: Int64[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Say which rows must come back bit for bit.

    Where several steps share a pass the number of steps in it may pick other kernels, so that
    equal records promise the same bits only where a pass holds one step.
    """
    units = rows // store.attributes.rows_per_unit
    ours = {
        int(unit): store.unit_engines(int(unit)) == {engine.digest()} for unit in np.unique(units)
    }
    return np.array([engine.steps_per_pass == 1 and ours[int(unit)] for unit in units])
