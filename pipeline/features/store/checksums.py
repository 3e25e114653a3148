"""Whether every byte of a store is the one that was written, without any encoder or dataset.

Knows files and their list; reads no array. The list and the mark tell by their own seals whether
they are whole, everything else is compared with the list.
"""

from dataclasses import dataclass

from tqdm import tqdm

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.features.store.records import (
    COMPLETE_MARK,
    FILE_LIST,
    FileList,
    file_problem,
    file_record,
    is_leftover,
    read_file_list,
    read_mark,
    read_sealed,
)
from pipeline.storage.folder import Folder
from pipeline.storage.location import Location
from pipeline.storage.open import open_folder


@dataclass(frozen=True)
class DamagedFile:
    """A file that is not what it was when the store was completed."""

    name: str
    """Path below the store's folder, with forward slashes."""
    problem: str
    """What is wrong with it."""


@dataclass(frozen=True)
class ChecksumReport:
    """What reading every byte of a store showed."""

    store: Location
    num_files: int
    """Files of the store, its list and its mark included."""
    num_bytes: int
    damaged: tuple[DamagedFile, ...]
    extra: tuple[str, ...]
    """Files in the folder that are no part of the store: no damage."""

    def summary(self) -> str:
        """Say it in a line a file, and one for the whole."""
        lines = [f"{self.store}/{file.name}: {file.problem}" for file in self.damaged]
        lines += [
            f"note: {self.store}/{name} is no part of the store"
            + (", a write that was killed left it" if is_leftover(name) else "")
            for name in self.extra
        ]
        verdict = f"{len(self.damaged)} DAMAGED" if self.damaged else "all whole"
        size = f"{self.num_files} files, {self.num_bytes / 1e6:.1f} MB"
        return "\n".join([*lines, f"{self.store}: {size}: {verdict}"])


def verify_checksums(location: Location) -> ChecksumReport:
    """Read every byte of a complete store and compare it with what was written.

    Args:
        location: of the store.

    Raises:
        StoreError: there is no store.
        IncompleteStoreError: its embedding has not finished, so that no list of files exists.
    """
    store = open_folder(location)
    if not any(map(store.exists, ("zarr.json", COMPLETE_MARK, FILE_LIST))):
        raise StoreError(f"{store}: no feature store here; make one with vla-embed")
    if not any(map(store.exists, (COMPLETE_MARK, FILE_LIST))):
        raise IncompleteStoreError(
            f"{store}: embedding has not finished, so its files are not listed yet; run the same "
            f"vla-embed command again"
        )
    listed, damaged = _read_notes(store)
    for name in listed.sealed:
        damaged += _seal_damage(store, name)
    files = tqdm(listed.files.items(), desc="verify", unit="file", disable=None)
    for name, expected in files:
        problem = file_problem(store, name, expected)
        damaged += [] if problem is None else [DamagedFile(name, problem)]
    known = {*listed.files, *listed.sealed, COMPLETE_MARK, FILE_LIST}
    found = set(store.names())
    notes = found & {COMPLETE_MARK, FILE_LIST, *listed.sealed}
    return ChecksumReport(
        store=location,
        num_files=len(known),
        num_bytes=sum(file.bytes for file in listed.files.values())
        + sum(len(store.read(note)) for note in notes),
        damaged=tuple(damaged),
        extra=tuple(sorted(found - known)) if listed.files else (),
    )


def _read_notes(store: Folder) -> tuple[FileList, list[DamagedFile]]:
    """Return the list of files, empty where it is damaged, and what is wrong with list and mark."""
    damaged = _seal_damage(store, COMPLETE_MARK) + _seal_damage(store, FILE_LIST)
    if any(file.name == FILE_LIST for file in damaged):
        return FileList(files={}, sealed=()), damaged
    listed = read_file_list(store)
    if not damaged and file_record(store, FILE_LIST).sha256 != read_mark(store).file_list:
        damaged = [DamagedFile(FILE_LIST, f"is not the list that {COMPLETE_MARK} names")]
    return listed, damaged


def _seal_damage(store: Folder, name: str) -> list[DamagedFile]:
    try:
        read_sealed(store, name)
    except FileNotFoundError:
        return [DamagedFile(name, "is missing")]
    except StoreError:
        return [DamagedFile(name, "its bytes are not those its seal was made of")]
    return []
