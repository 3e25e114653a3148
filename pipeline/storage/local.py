"""Files and folders on a disk, written whole or not at all.

A file is written under a temporary name, flushed to the disk and renamed: it survives a power cut.
"""

import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path

from pipeline.storage.location import FileEntry


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Give a name to the `OSError` of a write, which has none where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # else its text is all it says
            error.filename = error.filename or str(path)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one (OSError: disk full)."""
    partial = sibling(path, f"{os.getpid()}.partial")
    try:
        with naming(path), partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_file(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write `value` as readable JSON, atomically; NaN and infinity are refused."""
    write_atomically(path, json_bytes(value))


def json_bytes(value: object) -> bytes:
    """Return `value` as readable JSON; NaN and infinity are refused."""
    return f"{json.dumps(value, indent=2, allow_nan=False)}\n".encode()


def sync_file(path: Path) -> None:
    """Force a file's content, or a folder's list of names, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force a folder and everything below it onto the disk."""
    for path in (folder, *folder.rglob("*")):
        sync_file(path)


def user_cache(name: str) -> Path:
    """Return one of this program's folders in the user's cache; it need not exist."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "frozen-vla" / name


def is_vacant(path: Path) -> bool:
    """Whether there is nothing at `path`, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


@dataclass(frozen=True)
class LocalFolder:
    """A folder on a disk; see `Folder`."""

    location: Path

    def __str__(self) -> str:
        return str(self.location)

    def is_there(self) -> bool:
        return self.location.exists()

    def exists(self, name: str) -> bool:
        return (self.location / name).is_file()

    def children(self) -> list[str] | None:
        if not self.location.is_dir():
            return None
        return [path.name for path in self.location.iterdir()]

    def files(self) -> Iterator[FileEntry]:
        root, seen, paths = self.location, set(), []
        for folder, folders, names in os.walk(root, followlinks=True):
            held = Path(folder).stat()
            if (held.st_dev, held.st_ino) in seen:  # by a link, that may lead back above itself
                folders.clear()
                continue
            seen.add((held.st_dev, held.st_ino))
            paths += [Path(folder, name) for name in names]
        for path in sorted(filter(Path.is_file, paths or [root])):
            status = path.stat()
            yield FileEntry(str(path.relative_to(root)), status.st_size, str(status.st_mtime_ns))

    def read(self, name: str) -> bytes:
        return (self.location / name).read_bytes()

    def open(self, name: str) -> RawIOBase:
        return (self.location / name).open("rb", buffering=0)

    def names(self, below: str = "") -> Iterator[str]:
        for path in (self.location / below).rglob("*"):
            if path.is_file():
                yield path.relative_to(self.location).as_posix()

    def write(self, name: str, content: bytes) -> None:
        write_atomically(self.location / name, content)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            (self.location / name).unlink(missing_ok=True)

    def settle(self, name: str) -> None:
        sync_tree(self.location / name)
        sync_file((self.location / name).parent)

    def is_vacant(self, parts: Collection[str]) -> bool:
        """Whether there is no folder, or an empty one: a crash in `made` leaves nothing here."""
        return is_vacant(self.location)

    @contextmanager
    def made(self, last: str) -> Iterator[Path]:
        """Fill a folder next to this one, flush it and rename it; see `Folder.made`."""
        partial = sibling(self.location, f"{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            sync_tree(partial)
            partial.rename(self.location)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync_file(self.location.parent)


def sibling(path: Path, what: str) -> Path:
    """Return a hidden path next to a folder or file, for its lock or a temporary copy."""
    return path.with_name(f".{path.name}.{what}")
