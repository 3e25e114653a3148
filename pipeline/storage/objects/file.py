"""An object as a file that is read in ranges, through obstore.

Small reads are served from a few blocks that are kept, since formats such as HDF5 read a few bytes
here and a few there.
"""

import io
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import PreconditionError

from pipeline.errors import ObjectStorageError
from pipeline.storage.location import ObjectUrl
from pipeline.storage.objects.requests import open_bucket, until_whole

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from obstore import GetOptions

BLOCK_BYTES: Final = 2**20  # fetched for a smaller read; takes about as long as one byte would
MAX_BLOCKS: Final = 16  # kept of a file


class ObjectFile(io.RawIOBase):
    """One object, read-only, with the content that it had when it was opened."""

    def __init__(self, url: ObjectUrl):
        """Request the object's size (FileNotFoundError: there is no such object)."""
        self._url = url
        self._objects = open_bucket(url.scheme, url.bucket)
        held = until_whole(str(url), partial(obstore.head, self._objects, url.path))
        self._size, self._e_tag = held["size"], held["e_tag"]
        self._position = 0
        self._block = lru_cache(MAX_BLOCKS)(self._read_block)  # by position

    def __repr__(self) -> str:
        return str(self._url)  # what h5py takes for the file's name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fill a buffer from the position; return how many of its bytes the object has.

        The rest becomes zeros, as in HDF5's own driver: h5py ignores the number.

        Raises:
            FileNotFoundError, ObjectStorageError: the object was removed or replaced, or no answer.
        """
        target = memoryview(buffer).cast("B")
        start = self._position
        stop = max(start, min(start + len(target), self._size))
        if stop - start >= BLOCK_BYTES:
            target[: stop - start] = self._get(start, stop)
        else:
            for first in range(start - start % BLOCK_BYTES, stop, BLOCK_BYTES):
                low, high = max(start, first), min(stop, first + BLOCK_BYTES)
                target[low - start : high - start] = self._block(first)[low - first : high - first]
        target[stop - start :] = bytes(len(target) - (stop - start))
        self._position = stop
        return stop - start

    def _read_block(self, first: int) -> bytes:
        return self._get(first, min(first + BLOCK_BYTES, self._size))

    def _get(self, start: int, stop: int) -> bytes:
        options: GetOptions = {"range": (start, stop)}
        if self._e_tag is not None:
            options["if_match"] = self._e_tag

        def whole_range() -> bytes:
            try:
                return bytes(obstore.get(self._objects, self._url.path, options=options).bytes())
            except PreconditionError:
                raise ObjectStorageError(
                    f"{self._url}: expected the object that was opened, found that it was replaced "
                    f"while it was read; run the same command again"
                ) from None

        return until_whole(str(self._url), whole_range)
