"""Which store an embedding writes: the present one, or one that will replace it.

If the dataset has the rows of the store, missing units are filled in place. If it has other rows
(episodes were added, removed or recorded again), a store of the new size grows next to the old one,
copies every feature whose frame the old one has, and replaces it when it is complete. Until then
readers see the old one. Nothing can be renamed or locked in object storage: there a store of other
rows is refused, and two processes that fill one store write the same bytes twice (see records.py).

The parts of a job array fill one store, and no process coordinates them. Each runs under a shared
lock, which excludes commands without a part, and waits for its turn to create, open or complete the
store. In object storage, without locks, one part must create the store before the others begin.

A crash on a disk may leave, next to `x.zarr`:

    .x.zarr.growing      the store that is being made
    .x.zarr.outdated     one that was being made before the dataset changed once more
    .x.zarr.outgrown     the old store, between the last two renames
    .x.zarr.1234.partial a store that process 1234 was creating
    .x.zarr.lock         empty; the embedding process locks it, and parts of a job leave it
    .x.zarr.turn         empty; a part of a job locks it to open or complete the store
"""

import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import StoreError
from pipeline.features.encode.config import Part
from pipeline.features.encode.dataset import start_frames
from pipeline.features.encode.frames import FrameSource
from pipeline.features.encode.known_frames import FrameIndex, StoredUnits
from pipeline.features.identity.encoder import refuse_other_encoder
from pipeline.features.identity.probe import Probe, check_probe
from pipeline.features.identity.source import SourceNote, read_source, write_source
from pipeline.features.store.attributes import StoreAttributes
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import mark_complete
from pipeline.features.store.layout import ROOT
from pipeline.features.store.records import discard_units, missing_units, unmark
from pipeline.features.store.steps import STEP_ARRAYS, StepArrays
from pipeline.storage.local import json_bytes, sibling, sync_file
from pipeline.storage.location import Location, on_disk
from pipeline.storage.locks import shared_writer, sole_writer
from pipeline.storage.open import open_folder
from policy.encoders.base import ImageEncoder
from policy.encoders.text import TextEncoder


@dataclass(frozen=True)
class Target:
    """A store to write, and where features may be copied from."""

    store: FeatureStore
    stored: tuple[StoredUnits, ...] = ()
    """Units of other stores."""
    replaces: Path | None = None
    """The path of the old store that it replaces once it is complete."""


def find_missing(
    target: Target, own: range, source: FrameSource, note: SourceNote, *, place_matters: bool
) -> tuple[list[int], dict[int, str], FrameIndex, float]:
    """Find this command's units without valid rows of these files, and discard their records.

    If files were touched since the store's note, every frame is compared with the store's. `note`
    is of the dataset as it is now, and is written next to the store.

    Returns:
        The units in order, why others do not read, the known frames, the seconds of comparing.
    """
    store, unread, compare_s = target.store, dict[int, str](), 0.0
    valid, held = store.valid_units(own), read_source(store.folder)
    if valid and (held is None or held.stamp != note.stamp):
        started = time.perf_counter()
        changed, unread = source.changed_units(store, sorted(valid))
        valid -= changed  # what does not read is kept: that may be the disk's fault, and pass
        compare_s = time.perf_counter() - started
    # A damaged unit may come back from a backup: its record must not make it valid again.
    invalid = set(own) - valid
    if invalid:
        discard_units(store.folder, invalid)
    # Written before the first unit: from here on, what is committed comes from these files. Not
    # where some do not read: the next command compares again.
    if held != note and not unread:
        write_source(store.folder, note)
    index = FrameIndex.of([(store, valid), *target.stored], place_matters=place_matters)
    return sorted(invalid), unread, index, compare_s


def finish_growth(path: Path) -> None:
    """Finish what a crash may have interrupted between the renames of `finish_store`."""
    for created in (path, sibling(path, "growing")):
        ours = re.compile(rf"\.{re.escape(created.name)}\.\d+\.partial")
        for partial in filter(lambda path: ours.fullmatch(path.name), path.parent.glob(".*")):
            shutil.rmtree(partial, ignore_errors=True)
    outgrown = sibling(path, "outgrown")
    if outgrown.exists() and not path.exists():
        grown = sibling(path, "growing")
        (grown if grown.exists() else outgrown).rename(path)
        sync_file(path.parent)
    _discard(outgrown)


def continue_store(path: Location, encoder: ImageEncoder) -> FeatureStore:
    """Open an existing store and load its features' bases into an encoder, or refuse one of both.

    Raises:
        StoreError: there is something else at `path`, or a store of other features.
        EncoderMismatchError: the store is another encoder's.
    """
    if not open_folder(path).exists(ROOT):
        raise StoreError(
            f"{path}: expected a feature store or nothing, found other files; use another --store"
        )
    store = FeatureStore.open(path, allow_incomplete=True, writable=True)
    held, asked = store.encoder.feature_names, encoder.feature_names
    if held != asked:
        raise StoreError(
            f"{path}: contains the features {','.join(held)}, not {','.join(asked)}; "
            f"use --features {','.join(held)}, or another --store"
        )
    if encoder.unfitted:
        encoder.bases |= store.read_bases()
    refuse_other_encoder(encoder, store.encoder, where=str(path))
    return store


def open_target(
    held: FeatureStore,
    attributes: StoreAttributes,
    steps: StepArrays,
    encoder: ImageEncoder,
    made: Probe | None,
    *,
    may_grow: bool,
) -> Target:
    """Resume a store that `continue_store` has accepted, or grow one next to it.

    `attributes` and `steps` are of the dataset as it is now. `made` is the probe that this encoder
    has just made, if this process has created the store. Unless it `may_grow`, a store of other
    rows than the dataset's is refused.

    Raises:
        EncoderMismatchError: the encoder does not pass the store's probe.
        StoreError: the store is of another manifest or other settings, or would have to grow and
            may not, or cannot in object storage.
    """
    path, disk = held.path, on_disk(held.path)
    _require_same_kind(held, attributes)
    probe = held.read_probe()
    if made is None or probe.digest() != made.digest():
        check_probe(encoder, probe, where=str(path))
    # Even if it is new: in object storage another process may have put the same root meanwhile.
    if _has_rows(held, steps):
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
        _require_same_kind(store, attributes)
    except StoreError:
        return None
    return store if store.encoder.fingerprint == attributes.encoder.fingerprint else None


def _require_same_kind(store: FeatureStore, attributes: StoreAttributes) -> None:
    """Refuse a store (StoreError) whose rows are not made as those of the dataset would be."""
    if store.attributes.manifest_digest != attributes.manifest_digest:
        raise StoreError(
            f"{store.path}: was created with a different manifest of "
            f"{attributes.manifest['name']} (revision, rate, size, views, keys or episodes "
            f"differ); use another --store"
        )
    asked = _settings(attributes)
    for setting, kept in _settings(store.attributes).items():
        if kept != asked[setting]:
            raise StoreError(
                f"{store.path}: expected {setting} {kept}, as it was created with, found "
                f"{asked[setting]}; use {kept}, or another --store"
            )


def _settings(attributes: StoreAttributes) -> dict[str, object]:
    return {
        "variants": attributes.num_variants,
        "codec": attributes.codec,
        "images_per_pass": attributes.environment.images_per_pass,
    }


def _has_rows(store: FeatureStore, steps: StepArrays) -> bool:
    return store.num_rows == steps.episode_ends[-1] and all(
        np.array_equal(store.read_whole(name), getattr(steps, name)) for name in STEP_ARRAYS
    )


def _follow_manifest(store: FeatureStore, attributes: StoreAttributes) -> None:
    """Copy what changes no row, such as splits; the manifest's other words stay as they were."""
    held = store.attributes
    kept = {"environment": held.environment, "rows_per_unit": held.rows_per_unit}
    followed = attributes.model_copy(update=kept)
    if followed.model_copy(update={"manifest": held.manifest}) != held:
        replace_attributes(store, followed)


def replace_attributes(store: FeatureStore, attributes: StoreAttributes) -> None:
    """Change the attributes of the same rows; the store is incomplete until marked again."""
    unmark(store.folder)
    metadata = json.loads(store.folder.read(ROOT))
    metadata["attributes"] = attributes.model_dump(mode="json")
    store.folder.write(ROOT, json_bytes(metadata))
    store.attributes = attributes


def _discard(path: Path) -> None:
    """Remove a store, its root first: what a crash leaves of it is no store."""
    (path / ROOT).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def hold_store(store: Location, part: Part | None) -> Iterator[None]:
    """Exclude other commands from a local store (StoreError); parts exclude only whole commands."""
    path, writer = on_disk(store), sole_writer if part is None else shared_writer
    with writer(path, StoreError, lock=sibling(path, "lock")) if path else nullcontext():
        if path and part is None:
            finish_growth(path)
        yield


@contextmanager
def take_turn(store: Location, part: Part | None) -> Iterator[None]:
    """Wait until no other part opens or completes the store."""
    path = None if part is None else on_disk(store)
    if path is None:
        yield
        return
    with sole_writer(path, StoreError, lock=sibling(path, "turn"), wait=True):
        finish_growth(path)
        yield


def require_same_files(store: FeatureStore, note: SourceNote) -> None:
    """Refuse a part (StoreError) if units were committed from files that were touched since.

    A part compares at most its own units with the files; another part may never run again.
    """
    held = read_source(store.folder)
    if held is not None and held.stamp == note.stamp:
        return
    if len(missing_units(store.folder, store.num_units)) < store.num_units:
        raise StoreError(
            f"{store.path}: files of the dataset, or the libraries that read them, have changed "
            f"since units were committed; run vla-embed without --units to compare all frames"
        )
    write_source(store.folder, note)


def finish_store(
    target: Target, part: Part | None, reader: ManifestReader, text_encoder: TextEncoder | None
) -> tuple[FeatureStore, str]:
    """Complete a store if no part is missing; return it, and in words what is missing.

    What is in no unit is written from the dataset. A store that grew replaces the old one.
    """
    # Another part may have written other attributes since.
    store = FeatureStore.open(target.store.path, allow_incomplete=True, writable=True)
    missing = set() if part is None else missing_units(store.folder, store.num_units)
    if part is not None and missing:
        parts = [Part(number, part.total) for number in range(1, part.total + 1)]
        counts = {own: len(missing.intersection(own.units(store.num_units))) for own in parts}
        left = ", ".join(f"{count} of part {own}" for own, count in counts.items() if count)
        return store, (
            f"part {part} is done; {len(missing)} of {store.num_units} units are missing: {left}; "
            f"the last part completes the store"
        )
    if not store.is_complete:
        if text_encoder is not None:
            store.write_instructions(text_encoder.encode(store.attributes.instructions))
        store.write_start_frames(start_frames(reader))
        mark_complete(store)
    if target.replaces is not None:
        target.replaces.rename(sibling(target.replaces, "outgrown"))
        finish_growth(target.replaces)
        _discard(sibling(target.replaces, "outdated"))
        store = FeatureStore.open(target.replaces)
    return store, ""
