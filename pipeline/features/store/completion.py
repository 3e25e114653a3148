"""Whether a store is complete, and that it stays the one it was while it is read."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.features.store.records import (
    COMPLETE_MARK,
    CompleteMark,
    hash_files,
    read_mark,
)
from pipeline.storage.folder import Folder


class Completion:
    """The complete mark of a store, read anew whenever it was written."""

    def __init__(self, folder: Folder):
        """Read nothing yet.

        Args:
            folder: of the store.
        """
        self._folder = folder
        self._read: tuple[object, CompleteMark | None] | None = None

    def mark(self) -> CompleteMark | None:
        """Return the mark; None where it is absent or damaged: then it marks nothing."""
        try:
            stamp = self._folder.stamp(COMPLETE_MARK)
        except FileNotFoundError:
            return None
        if self._read is None or self._read[0] != stamp:
            try:
                self._read = stamp, read_mark(self._folder)
            except (StoreError, FileNotFoundError):
                self._read = stamp, None
        return self._read[1]

    def require_mark(self) -> CompleteMark:
        """Return the mark (IncompleteStoreError: there is none; embedding again writes one)."""
        mark = self.mark()
        if mark is None:
            raise IncompleteStoreError(f"{self._folder}: not complete; run vla-embed again")
        return mark

    def damaged_metadata(self) -> list[str]:
        """Return the names of a complete store's zarr.json files that were changed since."""
        mark = self.mark()
        if mark is None:
            return []
        found = hash_files(self._folder, mark.metadata)
        return sorted(name for name in mark.metadata if found.get(name) != mark.metadata[name])

    def check_metadata(self) -> None:
        """Refuse a complete store whose zarr.json files are not those it was completed with.

        Raises:
            StoreError: one was changed since; the message names it.
        """
        damaged = self.damaged_metadata()
        if damaged:
            raise StoreError(
                f"{self._folder}/{damaged[0]}: is missing or was changed since the store was "
                f"completed; restore it from a copy, or embed into another --store"
            )

    def check_array(self, name: str, found: str) -> None:
        """Compare the hash of an array with the mark, if the store is complete.

        Raises:
            StoreError: they differ.
        """
        mark = self.mark()
        if mark is not None and mark.arrays.get(name) != found:
            raise StoreError(
                f"{self._folder}/{name}: is not what was embedded (a chunk is missing or was "
                f"changed); restore it from a copy, or embed into another --store"
            )

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
