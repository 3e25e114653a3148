"""Which store an embedding writes: a new one, the one there is, or one that will replace it.

Knows stores, not frames. Where the dataset has the rows of the store, missing units are filled in
place. Where it has other rows (episodes were added, removed or recorded again), a store of the new
size grows beside the old one, takes every feature whose frame the old one holds, and replaces it
when it is complete. Until then readers see the old one.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import EncoderMismatchError, StoreError
from pipeline.features.attributes import StepArrays, StoreAttributes
from pipeline.features.known_frames import KnownFrames
from pipeline.features.probe import check_probe
from pipeline.features.store import FeatureStore
from pipeline.files import sync_folder
from policy.backbone import FrozenSiglip2


@dataclass(frozen=True)
class Target:
    """A store to write, and what is known of its frames."""

    store: FeatureStore
    known: KnownFrames
    valid_units: set[int]
    """Committed units, before their frames were compared with the dataset's."""
    replaces: Path | None
    """The store's place once it is complete, where it grows beside an old one."""

    def finish(self) -> FeatureStore:
        """Mark the store complete and put it in its place.

        Raises:
            StoreError: some unit has no valid record.
        """
        if not self.store.is_complete:
            self.store.mark_complete()
        if self.replaces is None:
            return self.store
        self.replaces.rename(_outgrown(self.replaces))
        finish_growth(self.replaces)
        return FeatureStore.open(self.replaces)


def finish_growth(path: Path) -> None:
    """Finish what a crash may have cut off between the renames of `Target.finish`."""
    grown, outgrown = _growing(path), _outgrown(path)
    if outgrown.exists():
        if not path.exists():
            grown.rename(path)
            sync_folder(path.parent)
        shutil.rmtree(outgrown)


def open_target(
    path: Path,
    attributes: StoreAttributes,
    steps: StepArrays,
    backbone: FrozenSiglip2,
) -> Target:
    """Go on with the store at `path`, or grow one beside it.

    Raises:
        EncoderMismatchError: the store was made by another encoder.
        StoreError: there is something else at `path`, or a store of another manifest.
    """
    held = _open_same_kind(path, attributes, backbone)
    valid, engine = held.valid_units(), backbone.engine.digest()
    if _has_rows(held, steps):
        _follow_manifest(held, attributes)
        return Target(held, KnownFrames(engine, held, valid), valid, replaces=None)
    known = KnownFrames(engine, held, valid)
    growing = _growing(path)
    if growing.exists():
        store = FeatureStore.open(growing, allow_incomplete=True, writable=True)
        if store.attributes == attributes and _has_rows(store, steps):
            return Target(store, known, store.valid_units(), replaces=path)
        shutil.rmtree(growing)
    store = FeatureStore.create(growing, attributes, steps, held.read_probe())
    return Target(store, known, set(), replaces=path)


def _open_same_kind(
    path: Path, attributes: StoreAttributes, backbone: FrozenSiglip2
) -> FeatureStore:
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
    if store.attributes.manifest_digest != attributes.manifest_digest:
        raise StoreError(
            f"{path}: was made with another manifest than that of {attributes.manifest['name']} is "
            "now (its revision, rate, size, views or keys differ); embed into another --store"
        )
    for field in ("num_variants", "codec"):
        kept, asked = getattr(store.attributes, field), getattr(attributes, field)
        if kept != asked:
            raise StoreError(
                f"{path}: was made with {field.removeprefix('num_')} {kept}, this run asks for "
                f"{asked}; ask for {kept}, or name another --store"
            )
    check_probe(backbone, store.read_probe(), where=str(path))
    return store


def _has_rows(store: FeatureStore, steps: StepArrays) -> bool:
    held = store.read_steps()
    return all(
        np.array_equal(getattr(held, name), getattr(steps, name))
        for name in ("episode_ends", "state", "action", "timestamp")
    )


def _follow_manifest(store: FeatureStore, attributes: StoreAttributes) -> None:
    """Take over splits and weights, which change no row; words alone leave the store as it is."""
    held = store.attributes
    if (held.heldout, held.sources) != (attributes.heldout, attributes.sources):
        store.replace_attributes(attributes)


def _growing(path: Path) -> Path:
    return path.with_name(f".{path.name}.growing")


def _outgrown(path: Path) -> Path:
    return path.with_name(f".{path.name}.outgrown")
