"""A folder of files that are written whole or not at all, on a disk or in object storage.

Knows names and bytes; nothing about what they mean. `Folder` says what both promise. What differs:

* A local folder is made under another name and renamed, and what must survive a power cut is
  flushed. Whoever writes holds a lock (`files.sole_writer`).
* In object storage (`object_folder.py`) nothing can be renamed or locked. An answered PUT is
  durable and whole, and the last of two writers wins; `made` writes its last file on the condition
  that nobody else has.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple, Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

from pipeline.errors import ConfigError
from pipeline.storage.local_files import (
    is_vacant,
    made_whole,
    sync_folder,
    sync_tree,
    write_atomically,
)
from policy.errors import MissingExtraError

OBJECT_SCHEMES: Final = ("s3", "gs")
READ_BYTES: Final = 2**20  # of a file that is read in pieces

# Nothing that could part credentials, a query or a fragment from an address.
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PATH: Final = re.compile(r"[A-Za-z0-9._=+-]+(/[A-Za-z0-9._=+-]+)*")


@dataclass(frozen=True)
class ObjectUrl:
    """A prefix of a bucket, as `s3://bucket/path`; never with credentials in it."""

    scheme: str
    """One of `OBJECT_SCHEMES`."""
    bucket: str
    path: str
    """Below the bucket; neither begins nor ends with a slash."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.path}"

    def __truediv__(self, name: str) -> "ObjectUrl":
        return ObjectUrl(self.scheme, self.bucket, f"{self.path}/{name}".lstrip("/"))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """What the name ends with, from its last dot."""
        return PurePosixPath(self.path).suffix

    @property
    def parent(self) -> "ObjectUrl":
        """The address without its last part; the bucket's own has the path ``."""
        return ObjectUrl(self.scheme, self.bucket, self.path.rpartition("/")[0])


Location = Path | ObjectUrl
Stamp = tuple[object, ...]


class ObjectEntry(NamedTuple):
    """An object as a listing names it."""

    name: str
    """Below the address that was listed; empty for the object of that very address."""
    size: int
    """Bytes."""
    e_tag: str
    """Differs once other bytes were written."""


@runtime_checkable
class Folder(Protocol):
    """Files by their names below one place, with forward slashes.

    Every method raises `OSError` where the disk refuses and `ObjectStorageError` where object
    storage refuses or does not answer.
    """

    @property
    def location(self) -> Location:
        """Where it lies; `str` of the folder says the same."""

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""

    def read(self, name: str) -> bytes:
        """Return a file's content.

        Raises:
            FileNotFoundError: there is none.
        """

    def read_pieces(self, name: str) -> Iterator[bytes]:
        """Return a file's content in pieces that fit the memory.

        Raises:
            FileNotFoundError: there is none.
        """

    def stamp(self, name: str) -> Stamp:
        """Return what differs once other bytes were written under this name.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def names(self, below: str = "") -> Iterator[str]:
        """Return the names of all files, or of those in a folder below this one."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file so that the old one or the new one is there, never a part."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove files; those that are not there are passed over."""

    def settle(self, name: str) -> None:
        """Return when everything below a folder of this name would survive a power cut."""

    def is_vacant(self, parts: Collection[str]) -> bool:
        """Whether `made` may fill this place: nothing is there, or what a crash in `made` left.

        Args:
            parts: first parts of the names that `made` writes, without that of its last file.
        """

    def made(self, last: str) -> AbstractContextManager[Path]:
        """Give an empty local folder to fill, and put its files here when it is full.

        Args:
            last: name of the file without which the others count as absent.

        Raises:
            FileExistsError: somebody else has made this folder meanwhile.
        """


@dataclass(frozen=True)
class LocalFolder:
    """A folder on a disk."""

    location: Path

    def __str__(self) -> str:
        return str(self.location)

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self.location / name).is_file()

    def read(self, name: str) -> bytes:
        """Return a file's content; see `Folder.read`."""
        return (self.location / name).read_bytes()

    def read_pieces(self, name: str) -> Iterator[bytes]:
        """Return a file's content in pieces; see `Folder.read_pieces`."""
        with (self.location / name).open("rb") as file:
            while piece := file.read(READ_BYTES):
                yield piece

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


def parse_location(text: str) -> Location:
    """Return where a path or an address leads: `s3://bucket/path`, `gs://...`, `file:///path`.

    Raises:
        ConfigError: an address of another kind, or one with more in it than bucket and path;
            what it holds is not repeated, because it may be a secret.
    """
    if not is_address(text):
        return Path(text)
    scheme, _, rest = text.partition("://")
    if scheme == "file" and not urlsplit(text).netloc:
        return Path(unquote(rest))
    bucket, _, path = rest.rstrip("/").partition("/")
    is_plain = _BUCKET.fullmatch(bucket) and _PATH.fullmatch(path)
    if scheme not in OBJECT_SCHEMES or not is_plain or {".", ".."} & set(path.split("/")):
        shown = f"{scheme}://" if scheme in (*OBJECT_SCHEMES, "file") else "address"
        raise ConfigError(
            f"{shown}...: expected s3://bucket/path or gs://bucket/path of letters, digits and "
            f"._=+-, or a local path, found something else (not repeated here, it may be secret); "
            f"credentials come from the environment, as AWS_ACCESS_KEY_ID"
        )
    return ObjectUrl(scheme, bucket, path)


def is_address(text: str) -> bool:
    """Whether a text is meant as an address and not as a path; also `s3:/x`, with a slash lost."""
    return "://" in text or text.startswith(tuple(f"{scheme}:" for scheme in OBJECT_SCHEMES))


def resolved(location: Location) -> Location:
    """Return a local path without links, so that work beside it happens where it lies."""
    return location.resolve() if isinstance(location, Path) else location


def open_folder(location: Location) -> Folder:
    """Return the folder at a location, whether anything is there or not.

    Raises:
        MissingExtraError: it is in object storage, and obstore is not installed.
        ObjectStorageError: the environment's settings for object storage cannot be used.
    """
    if isinstance(location, Path):
        return LocalFolder(location)
    with _needing_obstore(location):
        from pipeline.storage.object_folder import ObjectFolder  # noqa: PLC0415 - optional
    return ObjectFolder(location)


def open_object(url: ObjectUrl) -> RawIOBase:
    """Open an object for reading from any position; only what is read is fetched.

    Raises:
        MissingExtraError, ObjectStorageError: as `open_folder`; the latter while reading, too.
        FileNotFoundError: there is none.
    """
    with _needing_obstore(url):
        from pipeline.storage.object_file import ObjectFile  # noqa: PLC0415 - optional
    return ObjectFile(url)


def list_objects(url: ObjectUrl) -> Iterator[ObjectEntry]:
    """List all objects below an address, or the one at it; nothing where there is neither.

    Raises:
        MissingExtraError, ObjectStorageError: as `open_folder`.
    """
    with _needing_obstore(url):
        from pipeline.storage.object_file import list_entries  # noqa: PLC0415 - optional
    return list_entries(url)


@contextmanager
def _needing_obstore(url: ObjectUrl) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{url}: object storage needs the module {error.name}, which is not installed; "
            f"run `pip install frozen-vla[objects]`"
        ) from error
