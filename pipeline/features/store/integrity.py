"""Whether every byte of a store is the one that was written.

The mark of a complete store holds the hash of each zarr.json and of each array that belongs to no
unit; a commit record holds the hashes of its unit. Neither needs an encoder or the dataset.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from tqdm import tqdm

from pipeline.errors import StoreError
from pipeline.features.identity.source import read_source
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.layout import PROBE, metadata_names, unit_arrays, whole_arrays
from pipeline.features.store.records import (
    COMPLETE_MARK,
    CompleteMark,
    damaged_metadata,
    hash_files,
    hash_rows,
    read_sealed,
    write_sealed,
)
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
    views, arrays = store.attributes.view_names, _hash_arrays(store)
    names = np.frombuffer(json.dumps(views).encode(), np.uint8)
    hashes = (store.read_unit_hashes(unit)[:, : len(views)] for unit in range(store.num_units))
    mark = CompleteMark(
        rows=store.num_rows,
        units=store.num_units,
        digest=_content_digest(store, arrays),
        source_digest=hash_rows(chain([names, store.read_episode_ends()], hashes)),
        arrays=arrays,
        metadata=hash_files(store.folder, metadata_names(store.attributes)),
    )
    write_sealed(store.folder, COMPLETE_MARK, mark)


def check_digest(store: FeatureStore, arrays: Mapping[str, str] | None = None) -> None:
    """Compare attributes, arrays and records with the mark (StoreError: something differs).

    Args:
        store: the store.
        arrays: sha256 of every array that belongs to no unit, by name; None reads them.
    """
    if _content_digest(store, arrays or _hash_arrays(store)) != store.digest():
        what = "attributes or commit records have changed since embedding"
        raise StoreError(f"{store.path}: {what}; embed the dataset into another --store")


def verify_checksums(location: Location) -> ChecksumReport:
    """Compare every byte of a complete store with what was written (StoreError: there is none)."""
    folder = open_folder(location)
    if not folder.exists(COMPLETE_MARK):
        FeatureStore.open(location)  # raises: there is no store, or embedding has not finished
    try:
        mark = read_sealed(folder, COMPLETE_MARK, CompleteMark)
    except StoreError as error:
        return ChecksumReport(location, 0, (f"{COMPLETE_MARK}: {error}",))
    damaged = [f"{name}: is missing or was changed" for name in damaged_metadata(folder)]
    try:
        read_source(folder)  # a store that was copied to be published may lack it
    except StoreError as error:
        damaged.append(str(error))
    if not damaged:
        damaged = _array_damage(FeatureStore.open(location), mark)
    return ChecksumReport(location, mark.units, tuple(damaged))


def _array_damage(store: FeatureStore, mark: CompleteMark) -> list[str]:
    damaged: list[str] = []

    def is_intact(what: str, read: Callable[[], object]) -> bool:
        try:
            read()
        except StoreError as error:
            damaged.append(f"{what}: {error}")
            return False
        return True

    for name in whole_arrays(store.attributes):
        is_intact(name, partial(store.read_whole, name))
    is_intact(PROBE, store.read_probe)
    for unit in tqdm(range(store.num_units), desc="verify", unit="unit", disable=None):
        if is_intact(f"commit record of unit {unit}", partial(store.unit_record, unit)):
            for name in unit_arrays(store.attributes):
                is_intact(f"{name}, unit {unit}", partial(store.check_rows, unit, name))
    if not damaged:  # so all arrays are as the mark says
        is_intact("content", partial(check_digest, store, mark.arrays))
    return damaged


def _hash_arrays(store: FeatureStore) -> dict[str, str]:
    """Return the sha256 of every array that belongs to no unit, by name."""
    names = whole_arrays(store.attributes)
    hashes = {name: hash_rows([store.read_whole(name)]) for name in names}
    return hashes | {PROBE: store.read_probe().digest()}


def _content_digest(store: FeatureStore, arrays: Mapping[str, str]) -> str:
    digest = hashlib.sha256(store.attributes.model_dump_json().encode())
    digest.update(json.dumps(arrays, sort_keys=True).encode())
    for unit in range(store.num_units):
        digest.update(store.unit_record(unit).model_dump_json().encode())
    return digest.hexdigest()
