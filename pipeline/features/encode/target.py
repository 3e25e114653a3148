"""Which store an embedding writes: the one there is, or one that will replace it.

Knows stores, not frames. Where the dataset has the rows of the store, missing units are filled in
place. Where it has other rows (episodes were added, removed or recorded again), a store of the new
size grows beside the old one, takes every feature whose frame the old one holds, and replaces it
when it is complete. Until then readers see the old one. Nothing can be renamed or locked in object
storage: there a store of other rows is refused, and two that fill one store at once write the same
bytes twice (see records.py). A crash on a disk may leave, beside `x.zarr`:

    .x.zarr.growing      the store that is being made
    .x.zarr.outdated     one that was being made before the dataset changed once more
    .x.zarr.outgrown     the old store, between the last two renames
    .x.zarr.discarded    a folder that is being removed
    .x.zarr.1234.partial a store that process 1234 was creating
    .x.zarr.lock         empty; whoever embeds held it, and parts of a job leave it there
    .x.zarr.turn         empty; a part of a job held it while it opened or completed the store
"""

import glob
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from pipeline.errors import EncoderMismatchError, StoreError
from pipeline.features.encode.known_frames import StoredUnits
from pipeline.features.identity.probe import Probe, check_probe
from pipeline.features.store.attributes import StoreAttributes
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.layout import ROOT
from pipeline.features.store.steps import STEP_ARRAYS, Steps
from pipeline.storage.folders import Location, ObjectUrl, open_folder
from pipeline.storage.local_files import sole_writer, sync_folder
from policy.encoders.siglip2 import FrozenSiglip2


@dataclass(frozen=True)
class Target:
    """A store to write, and where features may be copied from."""

    store: FeatureStore
    stored: tuple[StoredUnits, ...] = ()
    """Units of other stores."""
    replaces: Path | None = None
    """The store's place once it is complete, where it grows beside an old one."""

    def is_committed(self, unit: int) -> bool:
        """Whether a unit has valid rows by now."""
        return bool(self.store.valid_units([unit]))

    def finish(self, read_start_frames: Callable[[], np.ndarray]) -> FeatureStore:
        """Mark the store complete and put it in its place.

        Args:
            read_start_frames: gives what `FeatureStore.write_start_frames` takes, of the pictures
                that the features come from.

        Raises:
            StoreError: some unit has no valid record.
        """
        if not self.store.is_complete:
            self.store.write_start_frames(read_start_frames())
            self.store.mark_complete()
        if self.replaces is None:
            return self.store
        self.replaces.rename(_beside(self.replaces, "outgrown"))
        finish_growth(self.replaces)
        _discard(_beside(self.replaces, "outdated"))
        return FeatureStore.open(self.replaces)


@contextmanager
def sole_embedder(path: Location) -> Iterator[None]:
    """Hold a local store against every other `vla-embed`, and finish what a crash has cut off.

    Raises:
        StoreError: another process holds it.
    """
    if isinstance(path, ObjectUrl):
        yield
        return
    with sole_writer(path, StoreError, lock=lock_of(path)):
        finish_growth(path)
        yield


def lock_of(path: Path) -> Path:
    """Return the file that whoever writes the store at `path` holds, also while it is replaced."""
    return _beside(path, "lock")


def turn_of(path: Path) -> Path:
    """Return the file that parts of a job hold, one at a time, to open or complete the store."""
    return _beside(path, "turn")


def finish_growth(path: Path) -> None:
    """Finish what a crash may have cut off between the renames of `Target.finish`.

    The caller holds the store's lock.
    """
    shutil.rmtree(_beside(path, "discarded"), ignore_errors=True)
    for created in (path, _beside(path, "growing")):
        for partial in path.parent.glob(f".{glob.escape(created.name)}.*.partial"):
            shutil.rmtree(partial, ignore_errors=True)
    outgrown = _beside(path, "outgrown")
    if not outgrown.exists():
        return
    if not path.exists():
        grown = _beside(path, "growing")
        (grown if grown.exists() else outgrown).rename(path)
        sync_folder(path.parent)
    if outgrown.exists():
        _discard(outgrown)


def open_target(
    path: Location,
    attributes: StoreAttributes,
    steps: Steps,
    backbone: FrozenSiglip2,
    made: Probe | None,
    *,
    may_grow: bool = True,
) -> Target:
    """Go on with the store at `path`, or grow one beside it.

    Args:
        path: an existing store.
        attributes: what it must be.
        steps: of the dataset as it is now.
        backbone: the encoder that will fill it.
        made: the probe that this encoder has made for it just now, where this process has created
            the store: it would pass.
        may_grow: whether a store of other rows than the dataset's is grown, or refused.

    Raises:
        EncoderMismatchError: the store was made by another encoder.
        StoreError: there is something else at `path`, a store of another manifest, or one that
            would have to grow and may not, or cannot in object storage.
    """
    held = _open_same_kind(path, attributes)
    probe = held.read_probe()
    if made is None or probe.digest() != made.digest():
        check_probe(backbone, probe, where=str(path))
    # In object storage somebody else may have put the same root meanwhile: it names no rows.
    is_ours = made is not None and isinstance(path, Path)
    has_rows = is_ours or _has_rows(held, steps)
    differs = (
        f"{path}: holds {held.num_rows} steps, the dataset has {steps.episode_ends[-1]}, or others "
        f"of the same number"
    )
    if not has_rows and isinstance(path, ObjectUrl):
        raise StoreError(
            f"{differs}; a store in object storage cannot grow, so embed into another --store"
        )
    if not has_rows and not may_grow:
        raise StoreError(f"{differs}; one vla-embed without --units brings the store up to it")
    if has_rows:
        _follow_manifest(held, attributes)
        if isinstance(path, Path):
            _discard(_beside(path, "growing"))
            _discard(_beside(path, "outdated"))
        return Target(held)
    assert isinstance(path, Path)
    growing, outdated = _beside(path, "growing"), _beside(path, "outdated")
    if growing.exists():
        store = _reopened(growing, attributes)
        if store is not None and _has_rows(store, steps):
            _follow_manifest(store, attributes)
            stored = _stored_units(held, _reopened(outdated, attributes))
            return Target(store, stored, replaces=path)
        _discard(outdated)
        growing.rename(outdated)
    described = attributes.model_copy(update={"engine": probe.engine})
    store = FeatureStore.create(growing, described, steps, probe)
    stored = _stored_units(held, _reopened(outdated, attributes))
    return Target(store, stored, replaces=path)


def _stored_units(*stores: FeatureStore | None) -> tuple[StoredUnits, ...]:
    return tuple(
        StoredUnits(store, frozenset(store.valid_units())) for store in stores if store is not None
    )


def _reopened(path: Path, attributes: StoreAttributes) -> FeatureStore | None:
    """Open a store that was being made, if it can be of use; None otherwise."""
    try:
        store = FeatureStore.open(path, allow_incomplete=True, writable=True)
        for name in STEP_ARRAYS:
            deque(store.read_step_pieces(name), maxlen=0)
    except StoreError:  # a crash left a part of it
        return None
    return store if _deciding(store.attributes) == _deciding(attributes) else None


def _deciding(attributes: StoreAttributes) -> tuple[object, ...]:
    """Return what two stores must share for a feature of one to be a row of the other."""
    return (
        attributes.encoder.fingerprint,
        attributes.manifest_digest,
        attributes.num_variants,
        attributes.codec,
        attributes.view_names,
        attributes.fps,
    )


def _open_same_kind(path: Location, attributes: StoreAttributes) -> FeatureStore:
    if not open_folder(path).exists(ROOT):
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
    if _deciding(store.attributes) != _deciding(attributes):
        raise StoreError(
            f"{path}: its attributes are damaged: views {store.attributes.view_names} at "
            f"{store.attributes.fps} Hz, want {attributes.view_names} at {attributes.fps}; embed "
            "into another --store"
        )
    return store


def _has_rows(store: FeatureStore, steps: Steps) -> bool:
    # Episode ends first: they are short, and mostly tell.
    return all(
        held is not None and ours is not None and np.array_equal(held, ours)
        for name in sorted(STEP_ARRAYS, key="episode_ends".__ne__)
        for held, ours in zip_longest(store.read_step_pieces(name), steps.pieces(name))
    )


def _follow_manifest(store: FeatureStore, attributes: StoreAttributes) -> None:
    """Take over splits and weights, which change no row; words alone leave the store as it is."""
    held = store.attributes
    kept = {"engine": held.engine, "rows_per_unit": held.rows_per_unit}
    ours = attributes.model_copy(update=kept)
    if (held.heldout, held.sources, held.encoder) != (ours.heldout, ours.sources, ours.encoder):
        store.replace_attributes(ours)


def _discard(path: Path) -> None:
    """Remove a folder; what a crash leaves of it has a name that nobody opens."""
    if path.exists():
        discarded = path.with_name(f"{path.name.rpartition('.')[0]}.discarded")
        shutil.rmtree(discarded, ignore_errors=True)
        path.rename(discarded)
        shutil.rmtree(discarded)


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}")
