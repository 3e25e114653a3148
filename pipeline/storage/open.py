"""A folder of files on a disk (`local.py`) or in object storage (`objects/`), and how to open it.

Files are written whole or not at all. Callers that need a path use `on_disk`.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from io import RawIOBase
from pathlib import Path
from typing import Protocol, runtime_checkable

from pipeline.storage.local import LocalFolder
from pipeline.storage.location import FileEntry, Location
from policy.errors import MissingExtraError, install_command


@runtime_checkable
class Folder(Protocol):
    """Files by their names below one location, with forward slashes.

    A dataset may be a single file: `is_there`, `children` and `files` allow that location.

    Every method raises `OSError` if the disk fails and `ObjectStorageError` if object storage
    refuses or does not respond; readers raise `FileNotFoundError` if there is none.
    """

    @property
    def location(self) -> Location:
        """The path or address, as `str` of the folder."""

    def is_there(self) -> bool:
        """Whether the location is a folder or a file."""

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""

    def children(self) -> list[str] | None:
        """Return the names directly below, in no order; None if there is no folder."""

    def files(self) -> Iterable[FileEntry]:
        """Return every file below, links followed, or the one at the location; sorted."""

    def read(self, name: str) -> bytes:
        """Return a file's content."""

    def open(self, name: str) -> RawIOBase:
        """Open a file to read from any position; only those ranges of an object are fetched."""

    def names(self, below: str = "") -> Iterator[str]:
        """Return the names of all files, or of those in a folder below this one."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file so that there is the old one or the new one, never a part."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove files; missing ones are ignored."""

    def settle(self, name: str) -> None:
        """Return when everything below a folder of this name would survive a power cut."""

    def is_vacant(self, parts: Collection[str]) -> bool:
        """Whether the folder is empty, or holds an interrupted `made` of only these folders."""

    def made(self, last: str) -> AbstractContextManager[Path]:
        """Yield an empty local folder to fill, whose files are then moved here, `last` at the end.

        Raises:
            FileExistsError: another process has made this folder meanwhile.
        """


def open_folder(location: Location) -> Folder:
    """Return the folder at a location, whether it exists or not.

    Raises:
        MissingExtraError: it is in object storage, and obstore is not installed.
    """
    if isinstance(location, Path):
        return LocalFolder(location)
    try:
        from pipeline.storage.objects.folder import ObjectFolder  # noqa: PLC0415 - optional
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{location}: object storage needs the module {error.name}, which is not installed; "
            f"{install_command('objects')}"
        ) from error
    return ObjectFolder(location)
