"""Writing files whole or not at all: a temporary name, flushed to the disk, then renamed.

Knows bytes and paths; nothing about what they mean.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from policy.errors import VlaError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part.

    Raises:
        OSError: the disk is full or not writable; `path` is untouched.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write `value` as readable JSON, atomically; NaN and infinity are refused."""
    write_atomically(path, json_bytes(value))


def json_bytes(value: object) -> bytes:
    """Return `value` as readable JSON; NaN and infinity are refused."""
    return f"{json.dumps(value, indent=2, allow_nan=False)}\n".encode()


@contextmanager
def made_whole(path: Path) -> Iterator[Path]:
    """Give a folder to fill; it takes the name `path` when it is full and on the disk, not before.

    Raises:
        OSError: the disk is full or not writable; nothing is left at `path`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_tree(partial)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Force a file's content onto the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Force a folder's list of names onto the disk, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force a folder and everything below it onto the disk."""
    for path in (folder, *folder.rglob("*")):
        sync_folder(path) if path.is_dir() else sync_file(path)


def is_vacant(path: Path) -> bool:
    """Whether there is nothing at `path`, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


@contextmanager
def sole_writer(
    folder: Path, refusal: type[VlaError], *, lock: Path | None = None, wait: bool = False
) -> Iterator[None]:
    """Hold a folder against every other process that asks for it; the system frees it at a crash.

    Args:
        folder: what is held.
        refusal: class of the error.
        lock: a file to hold in its stead while it lasts, for a folder that does not exist yet or
            will be replaced.
        wait: until whoever holds it is done, instead of refusing.

    Raises:
        VlaError: another process holds it; of the class `refusal`.
    """
    held = folder if lock is None else lock
    with _locked(held, folder, refusal, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)):
        try:
            yield
        finally:
            if lock is not None:
                lock.unlink(missing_ok=True)


@contextmanager
def shared_writer(folder: Path, refusal: type[VlaError], *, lock: Path) -> Iterator[None]:
    """Hold a folder's lock together with others that do so, and against every sole writer.

    The file stays: who removed it would not know that another one has just opened it.

    Raises:
        VlaError: a sole writer holds it; of the class `refusal`.
    """
    with _locked(lock, folder, refusal, fcntl.LOCK_SH | fcntl.LOCK_NB):
        yield


@contextmanager
def _locked(held: Path, folder: Path, refusal: type[VlaError], operation: int) -> Iterator[None]:
    while True:
        descriptor = os.open(held, os.O_RDONLY) if held == folder else _open_lock(held)
        try:
            try:
                fcntl.flock(descriptor, operation)
            except BlockingIOError as error:
                raise refusal(
                    f"{folder}: another process is writing here; wait for it, or stop it"
                ) from error
            # Whoever held a lock file may have removed it since: then it says nothing any more.
            if held == folder or _is_at(descriptor, held):
                yield
                return
        finally:
            os.close(descriptor)


def _open_lock(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
