"""Sealed notes beside a store's arrays: what was written, and what every file must hash to.

A sealed file is JSON whose last field is a sha256 over the rest, and whose bytes are exactly those
that `write_sealed` would write again: any single bit that flips in it is noticed. Knows files and
hashes; nothing about arrays, encoders or zarr.

The order is the rule, on a disk as in object storage: a unit's arrays, then its record; every
record, then the list of files; the list, then the mark. Nothing depends on who wrote last: a record
holds the hash of its rows and the mark that of the list, so that two writers of one dataset on one
engine write the same bytes, and of two that differ a mixture is refused and encoded again.

    commits/000000.json   one a unit: its rows, the hash of their bytes, who computed them
    FILES.json            size and sha256 of every file of a complete store
    COMPLETE.json         written last: what the content, its source and FILES.json hash to
    source.json           where the frames came from; see source.py
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, Final, TypeVar

import numpy as np
from jaxtyping import Float16, Int64, UInt64
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import StoreError
from pipeline.storage.folder import Folder, Stamp

FILE_LIST: Final = "FILES.json"
COMPLETE_MARK: Final = "COMPLETE.json"
SOURCE_NOTE: Final = "source.json"
COMMITS: Final = "commits"
SEAL: Final = "seal"

Note = TypeVar("Note", bound=BaseModel)


class UnitRecord(BaseModel):
    """Says that a unit's rows were written, by what, and what they must hash to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: int
    rows: tuple[int, int]
    """Rows [start, stop) of the store."""
    sha256: str
    """Over the unit's features and frame hashes."""
    fingerprint: str
    """The encoder's."""
    engines: tuple[str, ...]
    """`EngineRecord.digest` of every engine that computed some of its features, sorted."""


class FileRecord(BaseModel):
    """What a file must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class FileList(BaseModel):
    """Every file that makes up a complete store, but the list itself and the mark."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, FileRecord]
    """By path below the store's folder, with forward slashes."""
    sealed: tuple[str, ...]
    """Files that may be written anew later, and tell by their own seal whether they are whole."""


class CompleteMark(BaseModel):
    """What a complete store holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    units: int
    digest: str
    """sha256 that names the store's content: attributes, steps, probe, commit records."""
    source_digest: str
    """sha256 over view order, episode ends and the hash of every decoded frame."""
    file_list: str
    """sha256 of FILES.json."""


def all_finite(features: Float16[np.ndarray, "n s 768"]) -> bool:
    """Whether a unit's features, one or more, may be written: none is NaN or infinite."""
    # By their bits: as signed numbers infinity and NaN are above every positive value, as unsigned
    # ones those with a sign above every negative value. Numpy's isfinite takes ten times as long.
    positive, negative = features.view(np.int16), features.view(np.uint16)
    return int(positive.max()) < 0x7C00 and int(negative.max()) < 0xFC00


def unit_hash(
    features: Iterable[Float16[np.ndarray, "_ v 768"]], frame_hash: UInt64[np.ndarray, "n v"]
) -> str:
    """Return the sha256 of a unit's rows, whose features come in pieces of consecutive ones."""
    digest = hashlib.sha256()
    for values in chain(features, [frame_hash]):
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def source_digest(
    view_names: tuple[str, ...],
    episode_ends: Int64[np.ndarray, " e"],
    frame_hash: Iterable[UInt64[np.ndarray, "_ v"]],
) -> str:
    """Return the sha256 of what was seen: views, episode borders, and the units' frame hashes."""
    digest = hashlib.sha256(json.dumps(view_names).encode())
    digest.update(episode_ends.tobytes())
    for hashes in frame_hash:
        digest.update(np.ascontiguousarray(hashes).data)
    return digest.hexdigest()


def sealed(content: dict[str, Any]) -> bytes:
    """Return JSON that notices every change to itself; NaN and infinity are refused."""
    canonical = json.dumps(content, sort_keys=True, allow_nan=False).encode()
    seal = hashlib.sha256(canonical).hexdigest()
    return f"{json.dumps(content | {SEAL: seal}, indent=1, allow_nan=False)}\n".encode()


def write_sealed(store: Folder, name: str, content: dict[str, Any]) -> None:
    """Write a sealed file, whole or not at all.

    Raises:
        OSError: the disk is full or not writable; the file is untouched.
    """
    store.write(name, sealed(content))


def read_sealed(store: Folder, name: str) -> dict[str, Any]:
    """Read a sealed file, without its seal.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it cannot be read, or its bytes were changed.
    """
    try:
        held = store.read(name)
        content = json.loads(held)
        del content[SEAL]
        is_whole = sealed(content) == held
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{store}/{name}: damaged, it cannot be read ({error})") from error
    if not is_whole:
        raise StoreError(f"{store}/{name}: damaged, its bytes are not those its seal was made of")
    return dict(content)


def record_name(unit: int) -> str:
    """Return the name of a unit's commit record below the store."""
    return f"{COMMITS}/{unit:06d}.json"


def write_unit_record(store: Folder, record: UnitRecord) -> None:
    """Write a unit's commit record, after its rows."""
    write_sealed(store, record_name(record.unit), record.model_dump(mode="json"))


def missing_units(store: Folder, num_units: int) -> set[int]:
    """Return the units of a store without a record; what others say is not read."""
    held = set(store.names(COMMITS))
    return {unit for unit in range(num_units) if record_name(unit) not in held}


def discard_units(store: Folder, units: Iterable[int]) -> None:
    """Take back that units were written; their rows count as absent from here on."""
    unmark(store)
    held = set(store.names(COMMITS))
    store.delete(name for unit in units if (name := record_name(unit)) in held)
    store.settle(COMMITS)


def read_unit_record(
    store: Folder, unit: int, rows: tuple[int, int], fingerprint: str
) -> UnitRecord:
    """Read a unit's commit record.

    Args:
        store: where the store lies.
        unit: the unit's number.
        rows: the rows [start, stop) that it must be of.
        fingerprint: of the encoder that must have made them.

    Raises:
        StoreError: there is none, it is damaged, or it is of other rows or another encoder.
    """
    where = f"{store}: rows {rows[0]}..{rows[1]} (unit {unit})"
    try:
        record = _validated(UnitRecord, store, record_name(unit))
    except FileNotFoundError as error:
        raise StoreError(f"{where} have no commit record") from error
    except StoreError as error:
        raise StoreError(f"{where} have a damaged commit record ({error})") from error
    if (record.unit, record.rows, record.fingerprint) != (unit, rows, fingerprint):
        raise StoreError(f"{where} have the commit record of other rows or another encoder")
    return record


def read_mark(store: Folder) -> CompleteMark:
    """Read a store's complete mark.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it is damaged.
    """
    return _validated(CompleteMark, store, COMPLETE_MARK)


def read_file_list(store: Folder) -> FileList:
    """Read a store's list of files.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it is damaged.
    """
    return _validated(FileList, store, FILE_LIST)


def write_file_list(store: Folder, roots: tuple[str, ...]) -> str:
    """Hash every file below some files and folders of a store and list them; return its sha256.

    Raises:
        OSError: a file cannot be read or written.
    """
    files = list_files(store, roots)
    write_sealed(store, FILE_LIST, files.model_dump(mode="json"))
    return file_record(store, FILE_LIST).sha256


def write_mark(store: Folder, mark: CompleteMark) -> None:
    """Write a store's complete mark, after its list of files."""
    write_sealed(store, COMPLETE_MARK, mark.model_dump(mode="json"))


def complete_stamp(store: Folder) -> Stamp:
    """Return what changes once another mark or list of files is written; () without them."""
    try:
        return store.stamp(COMPLETE_MARK) + store.stamp(FILE_LIST)
    except OSError:
        return ()


def read_complete(store: Folder) -> tuple[CompleteMark, FileList] | None:
    """Read a store's mark and list of files; None where they do not make it complete."""
    try:
        mark, files = read_mark(store), read_file_list(store)
        listed = file_record(store, FILE_LIST).sha256
    except (StoreError, OSError):
        return None
    return (mark, files) if listed == mark.file_list else None


def unmark(store: Folder) -> None:
    """Make a store incomplete, before anything of it is replaced."""
    store.delete((COMPLETE_MARK, FILE_LIST))


def list_files(store: Folder, roots: tuple[str, ...]) -> FileList:
    """Hash every file below some files and folders of a store.

    Raises:
        OSError: a file cannot be read.
    """
    names = sorted(
        name for name in store.names() if name.split("/")[0] in roots and not is_leftover(name)
    )
    return FileList(
        files={name: file_record(store, name) for name in names},
        sealed=(SOURCE_NOTE,) if store.exists(SOURCE_NOTE) else (),
    )


def file_record(store: Folder, name: str) -> FileRecord:
    """Return what a file holds now.

    Raises:
        OSError: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    for piece in store.read_pieces(name):
        digest.update(piece)
        size += len(piece)
    return FileRecord(bytes=size, sha256=digest.hexdigest())


def file_problem(store: Folder, name: str, expected: FileRecord) -> str | None:
    """Say what is wrong with a file; None where it holds what it must."""
    try:
        found = file_record(store, name)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if found.bytes != expected.bytes:
        return f"has {found.bytes} bytes, want {expected.bytes}"
    return None if found == expected else "holds other bytes than its sha256 was made of"


def check_listed(store: Folder, files: FileList, concerns: Callable[[str], bool]) -> None:
    """Compare some files of a complete store with the list of what they must be.

    Raises:
        StoreError: one was changed since; the message names it.
    """
    for name, expected in files.files.items():
        problem = file_problem(store, name, expected) if concerns(name) else None
        if problem is not None:
            raise StoreError(
                f"{store}/{name}: {problem}, so it is not what was embedded; restore it from a "
                f"copy, or embed into another --store"
            )


def is_leftover(name: str) -> bool:
    """Whether a write that was killed left this file; it is no part of a store."""
    return name.endswith(".partial")


def _validated(kind: type[Note], store: Folder, name: str) -> Note:
    content = read_sealed(store, name)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StoreError(
            f"{store}/{name}: {place}: {first['msg']}; written by another program"
        ) from error
