"""What a folder of files promises, on a disk (`local.py`) as in object storage (`objects/`).

Files are written whole or not at all. What differs is said there; callers that need what disks
alone can do ask `on_disk` for the path.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from io import RawIOBase
from pathlib import Path
from typing import Final, NamedTuple, Protocol, runtime_checkable

from pipeline.storage.location import Location

READ_BYTES: Final = 2**20  # of a file that is read in pieces

Stamp = tuple[object, ...]


class FileEntry(NamedTuple):
    """A file as a listing names it."""

    name: str
    """Below the place that was listed; `.` (empty in a bucket) for the file at that very place."""
    size: int
    """Bytes."""
    stamp: str
    """Differs once other bytes were written: the time of change, or an etag."""


@runtime_checkable
class Folder(Protocol):
    """Files by their names below one place, with forward slashes.

    A dataset may be a single file at that very place: `is_there`, `children` and `files` allow it.

    Every method raises `OSError` where the disk refuses and `ObjectStorageError` where object
    storage refuses or does not answer.
    """

    @property
    def location(self) -> Location:
        """Where it lies; `str` of the folder says the same."""

    def is_there(self) -> bool:
        """Whether there is anything at this very place, a folder or a file."""

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""

    def children(self) -> list[str] | None:
        """Return the names of what lies directly here, in no order; None where no folder is."""

    def files(self) -> Iterable[FileEntry]:
        """Return every file below, links followed, or the one at this very place; always sorted."""

    def read(self, name: str) -> bytes:
        """Return a file's content (FileNotFoundError: there is none)."""

    def read_pieces(self, name: str) -> Iterator[bytes]:
        """Return a file's content in pieces that fit the memory.

        Raises:
            FileNotFoundError: there is none.
        """

    def open(self, name: str) -> RawIOBase:
        """Open a file to read from any position; of an object only what is read is fetched.

        Raises:
            FileNotFoundError: there is none.
            OSError: it is something else, as a pipe, which would wait for its writer.
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
