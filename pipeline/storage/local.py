"""Files and folders on a disk, written whole or not at all.

What is written has a temporary name, is flushed to the disk and then renamed: it would survive a
power cut.
"""

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path

from pipeline.storage.folder import READ_BYTES, FileEntry, Stamp


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part.

    Raises:
        OSError: the disk is full or not writable; `path` is untouched.
    """
    partial = beside(path, f"{os.getpid()}.partial")
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
    partial = beside(path, f"{os.getpid()}.partial")
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


def user_cache(name: str) -> Path:
    """Return one of this program's folders in the user's cache; it need not exist."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "frozen-vla" / name


def is_vacant(path: Path) -> bool:
    """Whether there is nothing at `path`, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


@dataclass(frozen=True)
class LocalFolder:
    """A folder on a disk; `Folder` says what each method promises."""

    location: Path

    def __str__(self) -> str:
        return str(self.location)

    def is_there(self) -> bool:
        """Whether there is anything at this very place, a folder or a file."""
        return self.location.exists()

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self.location / name).is_file()

    def children(self) -> list[str] | None:
        """Return the names of what lies directly here, folders too; None where no folder is."""
        if not self.location.is_dir():
            return None
        return [path.name for path in self.location.iterdir()]

    def files(self) -> Iterator[FileEntry]:
        """Return name, size and time of change of every file; see `Folder.files`."""
        root = self.location
        for path in sorted([root] if root.is_file() else _files_below(root)):
            status = path.stat()
            name = str(path.relative_to(root))
            yield FileEntry(name, status.st_size, str(status.st_mtime_ns))

    def read(self, name: str) -> bytes:
        """Return a file's content; see `Folder.read`."""
        return (self.location / name).read_bytes()

    def read_pieces(self, name: str) -> Iterator[bytes]:
        """Return a file's content in pieces; see `Folder.read_pieces`."""
        with (self.location / name).open("rb") as file:
            while piece := file.read(READ_BYTES):
                yield piece

    def open(self, name: str) -> RawIOBase:
        """Open a file; see `Folder.open`."""
        path = self.location / name
        if path.exists() and not path.is_file():  # a pipe would wait, a device never end
            raise OSError(errno.EINVAL, "something else", str(path))
        return path.open("rb", buffering=0)

    def stamp(self, name: str) -> Stamp:
        """Return device, inode, size and time of change; see `Folder.stamp`."""
        status = (self.location / name).stat()
        return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns

    def names(self, below: str = "") -> Iterator[str]:
        """Return the names of all files, or of those in a folder below this one."""
        for path in (self.location / below).rglob("*"):
            if path.is_file():
                yield path.relative_to(self.location).as_posix()

    def write(self, name: str, content: bytes) -> None:
        """Write a file under a temporary name, flush it and rename it; see `Folder.write`."""
        write_atomically(self.location / name, content)

    def delete(self, names: Iterable[str]) -> None:
        """Remove files; those that are not there are passed over."""
        for name in names:
            (self.location / name).unlink(missing_ok=True)

    def settle(self, name: str) -> None:
        """Flush a folder and all that lies below it; see `Folder.settle`."""
        sync_tree(self.location / name)
        sync_folder((self.location / name).parent)

    def is_vacant(self, parts: Collection[str]) -> bool:
        """Whether nothing is there, or an empty folder: a crash in `made` leaves no part here."""
        return is_vacant(self.location)

    @contextmanager
    def made(self, last: str) -> Iterator[Path]:
        """Fill a folder beside this place, flush it and rename it; see `Folder.made`."""
        with made_whole(self.location) as partial:
            yield partial


def beside(path: Path, what: str) -> Path:
    """Return the hidden name beside a folder or file that something about it has."""
    return path.with_name(f".{path.name}.{what}")


def _files_below(root: Path) -> Iterator[Path]:
    seen = set()  # a link may lead back to a folder above it
    for folder, folders, files in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (path for name in files if (path := Path(folder, name)).is_file())
