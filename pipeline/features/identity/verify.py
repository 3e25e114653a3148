"""Whether a store holds what its encoder makes of its dataset: random rows, encoded again.

The frames are read and encoded as in embedding. In the environment that computed a row every bit
must be equal; in another one each feature must be within the tolerance of the store's probe.
"""

from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Float16, Int64, UInt8, UInt64
from tqdm import tqdm

from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import StoreError
from pipeline.features.encode.frames import hash_frames, read_slots
from pipeline.features.encode.unit_encoder import joined
from pipeline.features.identity.encoder import load_like
from pipeline.features.identity.probe import relative_l2
from pipeline.features.identity.source import open_source
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.records import record_name
from pipeline.features.store.units import EpisodeSlice, cut, episode_slices
from pipeline.storage.location import Location
from policy.device import open_device
from policy.encoders.base import ImageEncoder
from policy.encoders.environment import ComputeEnvironment

STEPS_AT_ONCE: Final = 32  # control steps read and encoded together

Features = dict[str, Float16[np.ndarray, "n s ..."]]


@dataclass(frozen=True)
class Distances:
    """How far features are from those they should be."""

    max_abs: float
    relative_l2_worst: float
    equal_share: float

    @classmethod
    def between(
        cls, found: Float[np.ndarray, "n v ..."], expected: Float[np.ndarray, "n v ..."]
    ) -> "Distances":
        """Compare features image by image, in float64."""
        return cls(
            max_abs=float(np.abs(found.astype(np.float64) - expected).max()),
            relative_l2_worst=float(relative_l2(found, expected).max()),
            equal_share=float((found == expected).mean()),
        )


@dataclass(frozen=True)
class VerifyReport:
    """The result of encoding random rows of a store again."""

    store: Location
    damaged_units: tuple[int, ...]
    """Units that were committed and are not valid any more; no step of them is drawn."""
    tolerance: float
    """Largest relative L2 allowed in another environment."""
    num_committed_steps: int = 0
    """The steps that were drawn from."""
    num_missing_steps: int = 0
    """Steps of units that are not committed yet."""
    num_steps: int = 0
    num_images: int = 0
    distances: dict[str, Distances] = field(default_factory=dict)
    """By feature; empty where no unit is valid, so that nothing could be compared."""
    worst: dict[str, str] = field(default_factory=dict)
    """By feature, episode, step and view of the farthest one."""
    num_exact_steps: int = 0
    """Steps that were computed in this very environment, so that every bit must be equal."""
    num_broken_steps: int = 0
    other_environment: tuple[str, ...] = ()
    """In what this environment differs from the one of the store's probe."""
    changed: tuple[str, ...] = ()
    """Frames of the dataset whose pixels differ from the embedded ones."""

    @property
    def is_within_tolerance(self) -> bool:
        """Whether the store has the features that it should."""
        if self.damaged_units or not self.distances:
            return False
        is_near = all(d.relative_l2_worst <= self.tolerance for d in self.distances.values())
        return is_near and not self.num_broken_steps and not self.changed

    def summary(self) -> str:
        """Return a line per figure, the verdict last."""
        missing = f"; {self.num_missing_steps} are not embedded yet" * bool(self.num_missing_steps)
        lines = [
            f"{self.num_images} images of {self.num_steps} random steps (of "
            f"{self.num_committed_steps}{missing}) were encoded again"
        ]
        for name, found in self.distances.items():
            lines += [
                f"{name}: max abs {found.max_abs:.3g}, {found.equal_share:.4%} of the values equal",
                f"  relative L2 up to {found.relative_l2_worst:.3g} ({self.worst[name]})",
            ]
        if self.damaged_units:
            lines.append(
                f"{len(self.damaged_units)} units are damaged; run vla-embed again to "
                f"encode them again: unit {', '.join(map(str, self.damaged_units))}"
            )
        if self.other_environment:
            differs = "; ".join(self.other_environment)
            lines.append(f"this compute environment differs from that of the store: {differs}")
        if self.changed:
            lines.append(
                f"{len(self.changed)} frames of the dataset have changed since they were embedded, "
                f"the first is {self.changed[0]}"
            )
        if self.num_broken_steps:
            lines.append(
                f"{self.num_broken_steps} of {self.num_exact_steps} steps that were encoded in "
                f"this environment differ; expected all bits to be equal"
            )
        exact = f"{self.num_exact_steps} steps bit for bit, " if self.num_exact_steps else ""
        failed = "DAMAGED" if self.damaged_units else "OUT OF TOLERANCE"
        verdict = "OK" if self.is_within_tolerance else failed
        allowed = f"{exact}relative L2 up to {self.tolerance:.2g} in other environments"
        return "\n".join([*lines, f"{self.store}: {verdict} ({allowed})"])


def verify_store(
    store_path: Location,
    manifest: Path | None,
    *,
    sample: int,
    seed: int,
    encoder: str | None = None,
    device: str = "auto",
) -> VerifyReport:
    """Compare every unit of a store with its commit record, and encode random rows again.

    Args:
        store_path: the store, complete or not.
        manifest: the dataset's; None takes the one that the store was made from.
        sample: steps to encode, every view and variant of each; all if fewer are committed.
        seed: decides which.
        encoder: path or name of the encoder, if it moved; None takes the name in the store.
        device: `auto`, or torch's name of a device.

    Raises:
        StoreError: there is no store, no row of it is committed, it was made from other data, or
            its dataset is not known.
        ManifestError, DatasetError, FrameReadError: the dataset cannot be read.
        EncoderLoadError, EncoderMismatchError: its encoder cannot be loaded.
    """
    opened = open_device(device)
    store = FeatureStore.open(store_path, allow_incomplete=True)
    valid, tolerance = store.valid_units(), store.read_probe().tolerance
    damaged = tuple(
        unit
        for unit in range(store.num_units)
        if unit not in valid and (store.is_complete or store.folder.exists(record_name(unit)))
    )
    if not valid and not damaged:
        raise StoreError(f"{store_path}: no unit is committed yet; run vla-embed")
    if not valid:
        return VerifyReport(store_path, damaged, tolerance)
    with closing(open_source(store, manifest)) as reader:
        loaded = load_like(
            store.encoder,
            store.attributes.environment,
            store.read_bases(),
            name=encoder,
            where=str(store_path),
            device=opened,
        )
        committed = np.concatenate([np.arange(*store.unit_rows(unit)) for unit in sorted(valid)])
        rows = np.sort(np.random.default_rng(seed).permutation(committed)[:sample])
        counts = len(committed), store.num_rows - len(committed)
        report = VerifyReport(store_path, damaged, tolerance, *counts)
        return _compare(report, store, reader, loaded, rows)


def _compare(
    report: VerifyReport,
    store: FeatureStore,
    reader: ManifestReader,
    encoder: ImageEncoder,
    rows: Int64[np.ndarray, " n"],
) -> VerifyReport:
    """Return the report with what became of `rows`, which ascend."""
    expected, held_hashes, is_exact = _read_rows(store, rows, encoder.environment)
    ends, num_variants = store.read_episode_ends(), store.attributes.num_variants
    steps = [next(episode_slices(ends, row, row + 1)) for row in rows.tolist()]
    found, hashes = _encode(reader, encoder, steps, num_variants)
    slots = [
        f"view {view}{f', variant {variant}' if variant else ''}"
        for variant in range(1 + num_variants)
        for view in reader.view_names
    ]

    def describe(step: int, slot: int) -> str:
        episode, first = steps[step].episode, steps[step].start
        return f"{reader.episode_name(episode)}, step {first}, {slots[slot]}"

    worst = {}
    is_equal = np.ones(len(rows), bool)
    for name, held in expected.items():
        distance = relative_l2(found[name], held)
        step, slot = np.unravel_index(int(distance.argmax()), distance.shape)
        worst[name] = describe(int(step), int(slot))
        is_equal &= (found[name] == held).reshape(len(rows), -1).all(axis=1)
    return replace(
        report,
        num_steps=len(rows),
        num_images=hashes.size,
        distances={name: Distances.between(found[name], expected[name]) for name in expected},
        worst=worst,
        num_exact_steps=int(is_exact.sum()),
        num_broken_steps=int((is_exact & ~is_equal).sum()),
        other_environment=tuple(store.read_probe().environment.differences(encoder.environment)),
        changed=tuple(describe(*place) for place in np.argwhere(hashes != held_hashes).tolist()),
    )


def _encode(
    reader: ManifestReader, encoder: ImageEncoder, steps: list[EpisodeSlice], num_variants: int
) -> tuple[Features, UInt64[np.ndarray, "n s"]]:
    """Encode steps, variants included; return features and the hashes of their frames."""
    found, hashes = [], []
    batches = [*cut(0, len(steps), STEPS_AT_ONCE)]
    for batch in tqdm(batches, desc="verify", unit="batch", disable=None):
        read = [read_slots(reader, step, num_variants=num_variants) for step in steps[batch]]
        frames: UInt8[np.ndarray, "n s 256 256 3"] = np.concatenate(read)
        hashes.append(hash_frames(frames))
        views = frames.reshape(-1, len(reader.view_names), *frames.shape[2:])
        encoded = encoder.encode_views(views).items()
        found.append(
            {name: rows.reshape(*frames.shape[:2], *rows.shape[2:]) for name, rows in encoded}
        )
    return joined(found), np.concatenate(hashes)


def _read_rows(
    store: FeatureStore, rows: Int64[np.ndarray, " n"], environment: ComputeEnvironment
) -> tuple[Features, UInt64[np.ndarray, "n s"], Bool[np.ndarray, " n"]]:
    """Read features and frame hashes of rows, and which of them must be equal bit for bit."""
    units, within = np.divmod(rows, store.attributes.rows_per_unit)
    features, hashes, is_exact = [], [], []
    for unit in np.unique(units).tolist():
        inside = within[units == unit]
        held = store.read_unit_features(unit)
        features.append({name: values[inside] for name, values in held.items()})
        hashes.append(store.read_unit_hashes(unit)[inside])
        is_ours = store.unit_record(unit).environments == (environment.digest(),)
        is_exact.append(np.full(len(inside), is_ours))
    return joined(features), np.concatenate(hashes), np.concatenate(is_exact)
