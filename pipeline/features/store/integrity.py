"""Whether every byte of a store is the one that was written.

The mark of a complete store holds the hash of each zarr.json and of each array that belongs to no
unit; a commit record holds the hashes of its unit. Neither needs an encoder or the dataset.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from tqdm import tqdm

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.layout import (
    BASES,
    INSTRUCTIONS,
    PROBE,
    ROOT,
    START_ARRAYS,
    metadata_names,
    unit_arrays,
)
from pipeline.features.store.records import (
    COMPLETE_MARK,
    SOURCE_NOTE,
    CompleteMark,
    damaged_metadata,
    hash_files,
    hash_rows,
    read_mark,
    read_sealed,
    source_digest,
    write_sealed,
)
from pipeline.features.store.steps import STEP_ARRAYS
from pipeline.storage.folder import Folder
from pipeline.storage.location import Location
from pipeline.storage.open import open_folder


@dataclass(frozen=True)
class ChecksumReport:
    """The result of reading every byte of a store."""

    store: Location
    num_units: int
    damaged: tuple[str, ...]
    """What is damaged, and how: an array with its unit, or a file."""

    def summary(self) -> str:
        """Return a line per damage, and one for the whole."""
        lines = [f"{self.store}: {damage}" for damage in self.damaged]
        verdict = f"{len(self.damaged)} DAMAGED" if self.damaged else "all intact"
        return "\n".join([*lines, f"{self.store}: {self.num_units} units: {verdict}"])


def mark_complete(store: FeatureStore) -> None:
    """Check every unit and write the complete mark (StoreError: some unit has no valid record)."""
    for unit in range(store.num_units):
        store.check_unit(unit)
    views, ends = store.attributes.view_names, store.read_episode_ends()
    hashes = (store.read_unit_hashes(unit)[:, : len(views)] for unit in range(store.num_units))
    seen, arrays = source_digest(views, ends, hashes), _hash_arrays(store)
    mark = CompleteMark(
        rows=store.num_rows,
        units=store.num_units,
        digest=_content_digest(store, arrays),
        source_digest=seen,
        arrays=arrays,
        metadata=hash_files(store.folder, metadata_names(store.attributes)),
    )
    write_sealed(store.folder, COMPLETE_MARK, mark.model_dump(mode="json"))


def check_digest(store: FeatureStore) -> None:
    """Compare attributes, step arrays and records with the mark (StoreError: something differs)."""
    if _content_digest(store, _hash_arrays(store)) != store.digest():
        what = "attributes or commit records have changed since embedding"
        raise StoreError(f"{store.path}: {what}; embed the dataset into another --store")


def verify_checksums(location: Location) -> ChecksumReport:
    """Compare every byte of a complete store with what was written (StoreError: there is none)."""
    folder = open_folder(location)
    if not any(map(folder.exists, (ROOT, COMPLETE_MARK))):
        raise StoreError(
            f"{folder}: expected a feature store, found none; create one with vla-embed"
        )
    try:
        mark = read_mark(folder)
    except FileNotFoundError as error:
        raise IncompleteStoreError(
            f"{folder}: embedding has not finished; run the same vla-embed command again"
        ) from error
    except StoreError as error:
        return ChecksumReport(location, 0, (f"{COMPLETE_MARK}: {error}",))
    damaged = [f"{name}: is missing or was changed" for name in damaged_metadata(folder)]
    damaged += _note_damage(folder)
    if not damaged:
        damaged += _array_damage(FeatureStore.open(location))
    return ChecksumReport(location, mark.units, tuple(damaged))


def _note_damage(folder: Folder) -> list[str]:
    try:
        read_sealed(folder, SOURCE_NOTE)
    except FileNotFoundError:
        return []  # a store that was copied to be published may lack it
    except StoreError as error:
        return [str(error)]
    return []


def _array_damage(store: FeatureStore) -> list[str]:
    damaged: list[str] = []

    def check(what: str, read: Callable[[], object]) -> None:
        try:
            read()
        except StoreError as error:
            damaged.append(f"{what}: {error}")

    for name in STEP_ARRAYS:
        check(name, partial(store.read_whole, name))
    check(PROBE, store.read_probe)
    check(BASES, store.read_bases)
    check(START_ARRAYS[0], store.read_start_frames)
    if store.attributes.text_encoder:
        check(INSTRUCTIONS, store.read_instructions)
    for unit in tqdm(range(store.num_units), desc="verify", unit="unit", disable=None):
        try:
            store.unit_record(unit)
        except StoreError as error:
            damaged.append(f"commit record of unit {unit}: {error}")
            continue
        for name in unit_arrays(store.attributes):
            check(f"{name}, unit {unit}", partial(store.check_rows, unit, name))
    if not damaged:
        check("content", partial(check_digest, store))
    return damaged


def _hash_arrays(store: FeatureStore) -> dict[str, str]:
    """Return the sha256 of every array that belongs to no unit, by name."""
    instructions = (INSTRUCTIONS,) if store.attributes.text_encoder else ()
    names = (*STEP_ARRAYS, *START_ARRAYS, *instructions)
    whole = {name: hash_rows([store.read_whole(name)]) for name in names}
    bases = {f"{BASES}/{name}": hash_rows([held]) for name, held in store.read_bases().items()}
    return whole | bases | {PROBE: store.read_probe().digest()}


def _content_digest(store: FeatureStore, arrays: Mapping[str, str]) -> str:
    digest = hashlib.sha256(store.attributes.model_dump_json().encode())
    digest.update(json.dumps(arrays, sort_keys=True).encode())
    for unit in range(store.num_units):
        digest.update(store.unit_record(unit).model_dump_json().encode())
    return digest.hexdigest()
