"""Sealed files next to a store's arrays: what was written, and what it must hash to.

A sealed file is JSON whose last field is a sha256 over the rest, and whose bytes are exactly those
that `write_sealed` writes again: any bit that flips in it is noticed.

The order is the rule, on a disk and in object storage: a unit's arrays, then its record; every
record, then the mark. A record holds the hashes of its rows. Two writers of one dataset in one
environment write the same bytes; where two differ, a mixture is refused and encoded again.

    commits/000000.json   one per unit: its rows, the hashes of their bytes, who computed them
    COMPLETE.json         written last: the hashes of everything that is not in a unit
    source.json           where the frames came from; see identity/source.py
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, TypeVar

import numpy as np
from pydantic import BaseModel

from pipeline.errors import StoreError
from pipeline.storage.open import Folder
from policy.errors import first_line
from policy.spec import FrozenModel

COMPLETE_MARK: Final = "COMPLETE.json"
SOURCE_NOTE: Final = "source.json"
COMMITS: Final = "commits"
SEAL: Final = "seal"

Record = TypeVar("Record", bound=BaseModel)


class UnitRecord(FrozenModel):
    """A unit's rows were written: by what, and what they must hash to."""

    unit: int
    rows: tuple[int, int]
    """Rows [start, stop) of the store."""
    sha256: dict[str, str]
    """By array, over the unit's rows of it."""
    fingerprint: str
    """`EncoderIdentity.fingerprint` of the encoder with its features."""
    environments: tuple[str, ...]
    """`ComputeEnvironment.digest` of each in which some of its features were computed, sorted."""


class CompleteMark(FrozenModel):
    """What a complete store holds."""

    rows: int
    units: int
    digest: str
    """sha256 that names the store's content: attributes, arrays, probe, commit records."""
    source_digest: str
    """sha256 over view order, episode ends and the hash of every decoded frame."""
    arrays: dict[str, str]
    """sha256 of every array that is written when the store is created, by its name."""
    metadata: dict[str, str]
    """sha256 of every zarr.json, by its name."""


def find_mark(store: Folder) -> CompleteMark | None:
    """Return a store's mark; None if it is absent or damaged: then it marks nothing."""
    try:
        return read_sealed(store, COMPLETE_MARK, CompleteMark)
    except (StoreError, FileNotFoundError):
        return None


def damaged_metadata(store: Folder) -> list[str]:
    """Return the names of a complete store's zarr.json files that were changed since."""
    mark = find_mark(store)
    if mark is None:
        return []
    found = hash_files(store, mark.metadata)
    return sorted(name for name in mark.metadata if found.get(name) != mark.metadata[name])


def hash_rows(rows: Iterable[np.ndarray]) -> str:
    """Return the sha256 of consecutive rows of an array, which come in slices."""
    digest = hashlib.sha256()
    for values in rows:
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def sealed(content: dict[str, Any]) -> bytes:
    """Return JSON with a hash of itself; NaN and infinity are refused."""
    canonical = json.dumps(content, sort_keys=True, allow_nan=False).encode()
    seal = hashlib.sha256(canonical).hexdigest()
    return f"{json.dumps(content | {SEAL: seal}, indent=1, allow_nan=False)}\n".encode()


def write_sealed(store: Folder, name: str, record: BaseModel) -> None:
    """Write a sealed file, whole or not at all (OSError: the disk is full or not writable)."""
    store.write(name, sealed(record.model_dump(mode="json")))


def read_sealed(store: Folder, name: str, kind: type[Record]) -> Record:
    """Read a sealed file (FileNotFoundError: there is none; StoreError: its bytes were changed)."""
    try:
        return kind.model_validate(_unsealed(store.read(name)))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{store}/{name}: damaged ({first_line(error)})") from error


@lru_cache(maxsize=64)  # the mark is read again with every array
def _unsealed(held: bytes) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(held)
    del content[SEAL]
    if sealed(content) != held:
        raise ValueError("its content does not match its checksum")
    return content


def record_name(unit: int) -> str:
    """Return the name of a unit's commit record below the store."""
    return f"{COMMITS}/{unit:06d}.json"


def missing_units(store: Folder, num_units: int) -> set[int]:
    """Return the units of a store without a record; the content of the others is not read."""
    held = set(store.names(COMMITS))
    return {unit for unit in range(num_units) if record_name(unit) not in held}


def discard_units(store: Folder, units: Iterable[int]) -> None:
    """Delete the records of units; their rows count as absent from here on."""
    unmark(store)
    held = set(store.names(COMMITS))
    store.delete(name for unit in units if (name := record_name(unit)) in held)
    store.settle(COMMITS)


def hash_files(store: Folder, names: Iterable[str]) -> dict[str, str]:
    """Return the sha256 of files of a store by name, without missing ones."""
    hashes = {}
    for name in names:
        with suppress(FileNotFoundError):
            hashes[name] = hashlib.sha256(store.read(name)).hexdigest()
    return hashes


def unmark(store: Folder) -> None:
    """Make a store incomplete, before anything of it is replaced."""
    store.delete((COMPLETE_MARK,))
