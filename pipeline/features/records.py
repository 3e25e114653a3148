"""Sealed notes beside a store's arrays: what was written, and what every file must hash to.

A sealed file is JSON whose last field is a sha256 over the rest, and whose bytes are exactly those
that `write_sealed` would write again: any single bit that flips in it is noticed. Knows files and
hashes; nothing about arrays, encoders or zarr.

    commits/000000.json   one a unit: its rows, the hash of their bytes, who computed them
    FILES.json            size and sha256 of every file of a complete store
    COMPLETE.json         written last: what the content, its source and FILES.json hash to
    source.json           where the frames came from; see source.py
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from jaxtyping import Float16, Int64, UInt64
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import StoreError
from pipeline.files import sync_folder, write_atomically

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


def unit_hash(
    features: Float16[np.ndarray, "n v 768"], frame_hash: UInt64[np.ndarray, "n v"]
) -> str:
    """Return the sha256 of a unit's rows."""
    digest = hashlib.sha256(np.ascontiguousarray(features).data)
    digest.update(np.ascontiguousarray(frame_hash).data)
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


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write a sealed file, atomically.

    Raises:
        OSError: the disk is full or not writable; `path` is untouched.
    """
    write_atomically(path, sealed(content))


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a sealed file, without its seal.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it cannot be read, or its bytes were changed.
    """
    try:
        held = path.read_bytes()
        content = json.loads(held)
        del content[SEAL]
        is_whole = sealed(content) == held
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: damaged, it cannot be read ({error})") from error
    if not is_whole:
        raise StoreError(f"{path}: damaged, its bytes are not those its seal was made of")
    return dict(content)


def record_path(store: Path, unit: int) -> Path:
    """Return where a unit's commit record lies."""
    return store / COMMITS / f"{unit:06d}.json"


def discard_units(store: Path, units: Iterable[int]) -> None:
    """Take back that units were written; their rows count as absent from here on."""
    unmark(store)
    for unit in units:
        record_path(store, unit).unlink(missing_ok=True)
    sync_folder(store / COMMITS)


def read_unit_record(store: Path, unit: int, rows: tuple[int, int], fingerprint: str) -> UnitRecord:
    """Read a unit's commit record.

    Args:
        store: the store's folder.
        unit: the unit's number.
        rows: the rows [start, stop) that it must be of.
        fingerprint: of the encoder that must have made them.

    Raises:
        StoreError: there is none, it is damaged, or it is of other rows or another encoder.
    """
    where = f"{store}: rows {rows[0]}..{rows[1]} (unit {unit})"
    try:
        record = _validated(UnitRecord, record_path(store, unit))
    except FileNotFoundError as error:
        raise StoreError(f"{where} have no commit record") from error
    except StoreError as error:
        raise StoreError(f"{where} have a damaged commit record ({error})") from error
    if (record.unit, record.rows, record.fingerprint) != (unit, rows, fingerprint):
        raise StoreError(f"{where} have the commit record of other rows or another encoder")
    return record


def read_mark(store: Path) -> CompleteMark:
    """Read a store's complete mark.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it is damaged.
    """
    return _validated(CompleteMark, store / COMPLETE_MARK)


def read_file_list(store: Path) -> FileList:
    """Read a store's list of files.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it is damaged.
    """
    return _validated(FileList, store / FILE_LIST)


def complete_stamp(store: Path) -> tuple[int, ...]:
    """Return what changes whenever a store's mark or list of files is written; () without them."""
    try:
        found = [(store / name).stat() for name in (COMPLETE_MARK, FILE_LIST)]
    except OSError:
        return ()
    return tuple(n for s in found for n in (s.st_dev, s.st_ino, s.st_size, s.st_ctime_ns))


def read_complete(store: Path) -> tuple[CompleteMark, FileList] | None:
    """Read a store's mark and list of files; None where they do not make it complete."""
    try:
        mark, files = read_mark(store), read_file_list(store)
        listed = file_record(store / FILE_LIST).sha256
    except (StoreError, OSError):
        return None
    return (mark, files) if listed == mark.file_list else None


def unmark(store: Path) -> None:
    """Make a store incomplete, before anything of it is replaced."""
    (store / COMPLETE_MARK).unlink(missing_ok=True)
    (store / FILE_LIST).unlink(missing_ok=True)


def list_files(store: Path, roots: tuple[str, ...]) -> FileList:
    """Hash every file below some files and folders of a store.

    Raises:
        OSError: a file cannot be read.
    """
    names = sorted(_names(store, roots))
    return FileList(
        files={name: file_record(store / name) for name in names},
        sealed=(SOURCE_NOTE,) if (store / SOURCE_NOTE).is_file() else (),
    )


def file_record(path: Path) -> FileRecord:
    """Return what a file holds now.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(bytes=file.tell(), sha256=digest)


def file_problem(path: Path, expected: FileRecord) -> str | None:
    """Say what is wrong with a file; None where it holds what it must."""
    try:
        found = file_record(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if found.bytes != expected.bytes:
        return f"has {found.bytes} bytes, want {expected.bytes}"
    return None if found == expected else "holds other bytes than its sha256 was made of"


def check_listed(store: Path, files: FileList, concerns: Callable[[str], bool]) -> None:
    """Compare some files of a complete store with the list of what they must be.

    Raises:
        StoreError: one was changed since; the message names it.
    """
    for name, expected in files.files.items():
        problem = file_problem(store / name, expected) if concerns(name) else None
        if problem is not None:
            raise StoreError(
                f"{store}/{name}: {problem}, so it is not what was embedded; restore it from a "
                f"copy, or embed into another --store"
            )


def is_leftover(name: str) -> bool:
    """Whether a write that was killed left this file; it is no part of a store."""
    return name.endswith(".partial")


def _names(store: Path, roots: tuple[str, ...]) -> Iterator[str]:
    for root in roots:
        place = store / root
        for path in [place] if place.is_file() else place.rglob("*"):
            if path.is_file() and not is_leftover(path.name):
                yield path.relative_to(store).as_posix()


def _validated(kind: type[Note], path: Path) -> Note:
    content = read_sealed(path)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StoreError(f"{path}: {place}: {first['msg']}; written by another program") from error
