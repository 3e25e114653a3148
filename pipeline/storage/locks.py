"""Locks of folders on a disk, by the system's flock, which frees the locks of ended processes.

On several machines they need a file system that supports them (NFS and Lustre do, if mounted so).
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from policy.errors import VlaError


@contextmanager
def sole_writer(
    folder: Path, refusal: type[VlaError], *, lock: Path | None = None, wait: bool = False
) -> Iterator[None]:
    """Lock a folder for this process alone (`refusal`: another process holds it).

    Args:
        folder: what is locked.
        refusal: class of the error.
        lock: a file to lock instead, for a folder that does not exist yet or will be replaced.
        wait: until the folder is free, instead of raising.
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
    """Lock a folder's `lock` file with other shared writers, against every sole writer."""
    with _locked(lock, folder, refusal, fcntl.LOCK_SH | fcntl.LOCK_NB):
        yield


@contextmanager
def _locked(held: Path, folder: Path, refusal: type[VlaError], operation: int) -> Iterator[None]:
    flags = os.O_RDONLY
    if held != folder:  # on NFS an exclusive lock needs a file that is open for writing
        held.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT
    while True:
        descriptor = os.open(held, flags, 0o644)
        try:
            try:
                fcntl.flock(descriptor, operation)
            except BlockingIOError as error:
                raise refusal(
                    f"{folder}: another process is writing here; wait for it, or stop it"
                ) from error
            # The last holder may have removed the lock file since: then this lock means nothing.
            if _is_at(descriptor, held):
                yield
                return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
