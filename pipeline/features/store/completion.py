"""Whether a store is complete, and that it stays the one it was while it is read.

Knows a store's mark and its list of files; nothing about arrays or units.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.features.store.records import (
    CompleteMark,
    FileList,
    check_listed,
    complete_stamp,
    read_complete,
)
from pipeline.storage.folder import Folder


class Completion:
    """The mark and the list of files of a store, read anew whenever anyone has written them."""

    def __init__(self, folder: Folder):
        """Read nothing yet.

        Args:
            folder: of the store.
        """
        self._folder = folder
        self._read: tuple[object, tuple[CompleteMark, FileList] | None] | None = None

    def mark(self) -> CompleteMark | None:
        """Return the mark; None where it is absent or damaged: then it marks nothing."""
        held = self._held()
        return None if held is None else held[0]

    def require_mark(self) -> CompleteMark:
        """Return the mark.

        Raises:
            IncompleteStoreError: there is none; embedding again writes one.
        """
        mark = self.mark()
        if mark is None:
            raise IncompleteStoreError(f"{self._folder}: not complete; run vla-embed again")
        return mark

    def check_files(self, concerns: Callable[[str], bool]) -> None:
        """Compare some files with the list, if the store is complete.

        Raises:
            StoreError: one was changed since; the message names it.
        """
        held = self._held()
        if held is not None:
            check_listed(self._folder, held[1], concerns)

    def check_arrays(self, *names: str) -> None:
        """Compare the files of some arrays with the list, if the store is complete.

        Raises:
            StoreError: one was changed since; the message names it.
        """
        self.check_files(lambda name: name.split("/")[0] in names)

    @contextmanager
    def unreplaced(self) -> Iterator[str]:
        """Give the digest of what is read within; see `FeatureStore.unreplaced`."""
        digest, problem = self.require_mark().digest, None
        try:
            yield digest
        except StoreError as error:  # which may be what the change has caused
            problem = error
        mark = self.mark()
        if mark is None or mark.digest != digest:
            raise StoreError(
                f"{self._folder}: another store took its place, or it was changed, while it was "
                f"read; run the same command again"
            ) from problem
        if problem is not None:
            raise problem

    def _held(self) -> tuple[CompleteMark, FileList] | None:
        # Parsed once, for the list has a line a file; the stamp tells when anyone wrote it anew.
        stamp = complete_stamp(self._folder)
        if self._read is None or self._read[0] != stamp:
            self._read = stamp, read_complete(self._folder)
        return self._read[1]
