"""Which store an embedding writes: the present one, or one that will replace it.

If the dataset has the rows of the store, missing units are filled in place. If it has other rows
(episodes were added, removed or recorded again), a store of the new size grows next to the old one,
copies every feature whose frame the old one has, and replaces it when it is complete. Until then
readers see the old one. Nothing can be renamed or locked in object storage: there a store of other
rows is refused, and two processes that fill one store write the same bytes twice (see records.py).
A crash on a disk may leave, next to `x.zarr`:

    .x.zarr.growing      the store that is being made
    .x.zarr.outdated     one that was being made before the dataset changed once more
    .x.zarr.outgrown     the old store, between the last two renames
    .x.zarr.discarded    a folder that is being removed
    .x.zarr.1234.partial a store that process 1234 was creating
    .x.zarr.lock         empty; the embedding process locks it, and parts of a job leave it
    .x.zarr.turn         empty; a part of a job locks it to open or complete the store
"""

import glob
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.errors import StoreError
from pipeline.features.encode.frames import FrameSource
from pipeline.features.encode.known_frames import FrameIndex, StoredUnits
from pipeline.features.identity.encoder import refuse_other_encoder
from pipeline.features.identity.probe import Probe, check_probe
from pipeline.features.identity.source import SourceNote, read_source, write_source
from pipeline.features.store.attributes import StoreAttributes
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import mark_complete
from pipeline.features.store.layout import ROOT
from pipeline.features.store.records import discard_units, unmark
from pipeline.features.store.steps import STEP_ARRAYS, StepArrays
from pipeline.storage.local import json_bytes, sibling, sync_file
from pipeline.storage.location import Location, on_disk
from pipeline.storage.open import open_folder
from policy.encoders.base import ImageEncoder

_CHANGEABLE: Final = (
    "validation",
    "sources",
    "encoder",
    "instructions",
    "instruction_of",
    "text_encoder",
)


@dataclass(frozen=True)
class Target:
    """A store to write, and where features may be copied from."""

    store: FeatureStore
    stored: tuple[StoredUnits, ...] = ()
    """Units of other stores."""
    replaces: Path | None = None
    """The path of the old store that it replaces once it is complete."""

    def finish(self, write_rest: Callable[[FeatureStore], None]) -> FeatureStore:
        """Write what is in no unit, mark the store complete, and replace the old one."""
        if not self.store.is_complete:
            write_rest(self.store)
            mark_complete(self.store)
        if self.replaces is None:
            return self.store
        self.replaces.rename(sibling(self.replaces, "outgrown"))
        finish_growth(self.replaces)
        _discard(sibling(self.replaces, "outdated"))
        return FeatureStore.open(self.replaces)


@dataclass(frozen=True)
class Missing:
    """The units that a store lacks."""

    units: list[int]
    """To encode, ascending."""
    index: FrameIndex
    """Frames that need no encoding."""
    compare_s: float
    """Seconds of comparing frames with the store's."""


def find_missing(
    target: Target, own: range, source: FrameSource, note: SourceNote, *, place_matters: bool
) -> Missing:
    """Find this command's units without valid rows of these files, and discard their records.

    If files were touched since the store's note, every frame is compared with the store's. `note`
    is of the dataset as it is now, and is written next to the store.
    """
    store, compare_s = target.store, 0.0
    valid, held = store.valid_units(own), read_source(store.folder)
    # Files were touched: compare every frame.
    if valid and (held is None or held.stamp != note.stamp):
        started = time.perf_counter()
        valid = valid - source.changed_units(store, sorted(valid))
        compare_s = time.perf_counter() - started
    # A damaged unit may come back from a backup: its record must not make it valid again.
    invalid = set(own) - valid
    if invalid:
        discard_units(store.folder, invalid)
    # Written before the first unit: from here on, what is committed comes from these files.
    if held != note:
        write_source(store.folder, note)
    index = FrameIndex.of([(store, valid), *target.stored], place_matters=place_matters)
    return Missing(sorted(invalid), index, compare_s)


def finish_growth(path: Path) -> None:
    """Finish what a crash may have interrupted between the renames of `Target.finish`.

    The caller holds the store's lock.
    """
    shutil.rmtree(sibling(path, "discarded"), ignore_errors=True)
    for created in (path, sibling(path, "growing")):
        for partial in path.parent.glob(f".{glob.escape(created.name)}.*.partial"):
            shutil.rmtree(partial, ignore_errors=True)
    outgrown = sibling(path, "outgrown")
    if not outgrown.exists():
        return
    if not path.exists():
        grown = sibling(path, "growing")
        (grown if grown.exists() else outgrown).rename(path)
        sync_file(path.parent)
    if outgrown.exists():
        _discard(outgrown)


def continue_store(path: Location, encoder: ImageEncoder) -> None:
    """Load the bases of an existing store's features into an encoder, or refuse one of the two."""
    if not open_folder(path).exists(ROOT):
        raise StoreError(
            f"{path}: expected a feature store or nothing, found other files; use another --store"
        )
    store = FeatureStore.open(path, allow_incomplete=True)
    held, asked = store.encoder.feature_names, encoder.feature_names
    if held != asked:
        raise StoreError(
            f"{path}: contains the features {','.join(held)}, not {','.join(asked)}; "
            f"use --features {','.join(held)}, or another --store"
        )
    if encoder.unfitted:
        encoder.bases |= store.read_bases()
    refuse_other_encoder(encoder, store.encoder, where=str(path))


def open_target(
    path: Location,
    attributes: StoreAttributes,
    steps: StepArrays,
    encoder: ImageEncoder,
    made: Probe | None,
    *,
    may_grow: bool = True,
) -> Target:
    """Resume the store at `path`, which `continue_store` has accepted, or grow one next to it.

    `attributes` and `steps` are of the dataset as it is now. `made` is the probe that this encoder
    has just made, if this process has created the store. Unless it `may_grow`, a store of other
    rows than the dataset's is refused.

    Raises:
        EncoderMismatchError: the encoder does not pass the store's probe.
        StoreError: the store is of another manifest or other settings, or would have to grow and
            may not, or cannot in object storage.
    """
    held = _open_same_kind(path, attributes)
    probe = held.read_probe()
    if made is None or probe.digest() != made.digest():
        check_probe(encoder, probe, where=str(path))
    # In object storage another process may have put the same root meanwhile: it names no rows.
    disk = on_disk(path)
    is_ours = made is not None and disk is not None
    has_rows = is_ours or _has_rows(held, steps)
    if has_rows:
        _follow_manifest(held, attributes)
        if disk is not None:
            _discard(sibling(disk, "growing"))
            _discard(sibling(disk, "outdated"))
        return Target(held)
    num_steps = steps.episode_ends[-1]
    differs = f"{path}: its {held.num_rows} steps are not the {num_steps} steps of the dataset"
    if disk is None:
        raise StoreError(
            f"{differs}; a store in object storage cannot be extended: use another --store"
        )
    if not may_grow:
        raise StoreError(f"{differs}; run vla-embed without --units to update the store")
    growing, outdated = sibling(disk, "growing"), sibling(disk, "outdated")
    store = _reopened(growing, attributes)
    if store is not None and _has_rows(store, steps):
        _follow_manifest(store, attributes)
    else:
        if growing.exists():
            _discard(outdated)
            growing.rename(outdated)
        described = attributes.model_copy(update={"environment": probe.environment})
        store = FeatureStore.create(growing, described, steps, probe, held.read_bases())
    sources = filter(None, (held, _reopened(outdated, attributes)))
    stored = tuple((source, source.valid_units()) for source in sources)
    return Target(store, stored, replaces=disk)


def _reopened(path: Path, attributes: StoreAttributes) -> FeatureStore | None:
    """Open a store that was being made; None if there is none, or it is damaged or another's."""
    try:
        store = FeatureStore.open(path, allow_incomplete=True, writable=True)
        store.read_steps()
    except StoreError:
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
    store = FeatureStore.open(path, allow_incomplete=True, writable=True)
    if store.attributes.manifest_digest != attributes.manifest_digest:
        raise StoreError(
            f"{path}: was created with a different manifest of {attributes.manifest['name']} "
            "(revision, rate, size, views or keys differ); use another --store"
        )
    for setting, kept in _settings(store.attributes).items():
        asked = _settings(attributes)[setting]
        if kept != asked:
            raise StoreError(
                f"{path}: expected {setting} {kept}, as it was created with, found {asked}; use "
                f"{kept}, or another --store"
            )
    if _deciding(store.attributes) != _deciding(attributes):
        raise StoreError(
            f"{path}: damaged attributes: expected views {attributes.view_names} at "
            f"{attributes.fps} Hz, found {store.attributes.view_names} at "
            f"{store.attributes.fps} Hz; use another --store"
        )
    return store


def _settings(attributes: StoreAttributes) -> dict[str, object]:
    return {
        "variants": attributes.num_variants,
        "codec": attributes.codec,
        "images_per_pass": attributes.environment.images_per_pass,
    }


def _has_rows(store: FeatureStore, steps: StepArrays) -> bool:
    # Episode ends first: they are short, and mostly tell.
    names = sorted(STEP_ARRAYS, key="episode_ends".__ne__)
    return all(np.array_equal(store.read_whole(name), getattr(steps, name)) for name in names)


def _follow_manifest(store: FeatureStore, attributes: StoreAttributes) -> None:
    """Copy what changes no row, such as splits; the manifest's other words stay as they were."""
    held = store.attributes
    kept = {"environment": held.environment, "rows_per_unit": held.rows_per_unit}
    if any(getattr(held, field) != getattr(attributes, field) for field in _CHANGEABLE):
        replace_attributes(store, attributes.model_copy(update=kept))


def replace_attributes(store: FeatureStore, attributes: StoreAttributes) -> None:
    """Change the attributes of the same rows; the store is incomplete until marked again."""
    unmark(store.folder)
    metadata = json.loads(store.folder.read(ROOT))
    metadata["attributes"] = attributes.model_dump(mode="json")
    store.folder.write(ROOT, json_bytes(metadata))
    store.attributes = attributes


def _discard(path: Path) -> None:
    """Remove a folder; what a crash leaves of it has a name that nothing opens."""
    if path.exists():
        discarded = path.with_name(f"{path.name.rpartition('.')[0]}.discarded")
        shutil.rmtree(discarded, ignore_errors=True)
        path.rename(discarded)
        shutil.rmtree(discarded)
