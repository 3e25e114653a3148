"""Objects below a prefix of a bucket, as a folder of files, through obstore.

Nothing can be renamed or locked here. An acknowledged PUT is durable and whole, and the last of two
writers wins; `made` writes its last file only if no other process has.
"""

import io
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import PreconditionError
from obstore.store import from_url

from pipeline.errors import ObjectStorageError
from pipeline.storage.local import LocalFolder
from pipeline.storage.location import FileEntry, ObjectUrl
from pipeline.storage.objects.requests import RETRY, open_bucket, reaching, until_whole

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ObjectStore

NAMES_PER_PAGE: Final = 1_000  # what S3 lists in an answer
BLOCK_BYTES: Final = 2**20  # fetched for a smaller read; takes about as long as one byte would
MAX_BLOCKS: Final = 16  # kept of a file


class ObjectFolder:
    """Objects below a prefix; see `Folder`."""

    def __init__(self, location: ObjectUrl):
        """Send no request yet."""
        self.location = location

    def __str__(self) -> str:
        return str(self.location)

    @cached_property  # takes about 0.1 s, and who opens files one by one never needs it
    def objects(self) -> "ObjectStore":
        """The handle of obstore, with paths relative to the location."""
        with reaching(str(self)):
            return from_url(str(self), retry_config=RETRY)

    def is_there(self) -> bool:
        return next(self._listed(), None) is not None or bool(self._itself())

    def exists(self, name: str) -> bool:
        try:
            with reaching(f"{self}/{name}"):
                obstore.head(self.objects, name)
        except FileNotFoundError:
            return False
        return True

    def children(self) -> list[str] | None:
        names = list(self.names())
        return [name for name in names if "/" not in name] if any(names) else None

    def files(self) -> Iterable[FileEntry]:
        held = {meta["path"]: meta for meta in self._listed()} or self._itself()
        return sorted(
            FileEntry(name, meta["size"], meta["e_tag"] or "") for name, meta in held.items()
        )

    def read(self, name: str) -> bytes:
        return until_whole(f"{self}/{name}", lambda: bytes(obstore.get(self.objects, name).bytes()))

    def open(self, name: str) -> io.RawIOBase:
        return ObjectFile(self.location / name)

    def names(self, below: str = "") -> Iterator[str]:
        return (held["path"] for held in self._listed(below))

    def write(self, name: str, content: bytes | Path) -> None:
        until_whole(f"{self}/{name}", partial(obstore.put, self.objects, name, content))

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                until_whole(f"{self}/{name}", partial(obstore.delete, self.objects, name))

    def settle(self, name: str) -> None:
        """Do nothing: an acknowledged PUT is durable."""

    def is_vacant(self, parts: Collection[str]) -> bool:
        return all(name.split("/")[0] in parts for name in self.names())

    @contextmanager
    def made(self, last: str) -> Iterator[Path]:
        """Fill a temporary folder and put its files, `last` if no other process has by then.

        Two processes that make the same folder put the same bytes, and both succeed.
        """
        with TemporaryDirectory() as temporary:
            yield Path(temporary)
            filled = LocalFolder(Path(temporary))
            names = set(filled.names()) - {last}
            # Before the first PUT: what is added later may be another process's committed work.
            leftovers = set(self.names()) - names
            if last not in leftovers:
                for name in sorted(names):
                    self.write(name, Path(temporary, name))
                self.delete(leftovers)
            self._create(last, filled.read(last))

    def _listed(self, below: str = "") -> "Iterator[ObjectMeta]":
        """List page by page, so that a page whose answer is cut is requested again alone."""

        def page(after: str | None) -> "Sequence[ObjectMeta]":
            prefix = below or None
            pages = obstore.list(self.objects, prefix, offset=after, chunk_size=NAMES_PER_PAGE)
            return next(iter(pages), ())

        where, after = f"{self}/{below}".rstrip("/"), None
        while found := until_whole(where, partial(page, after)):
            yield from found
            after = found[-1]["path"]

    def _itself(self) -> "dict[str, ObjectMeta]":
        """Return the object that the location itself is, if it is one."""
        url = self.location
        request = partial(obstore.head, open_bucket(url.scheme, url.bucket), url.path)
        with suppress(FileNotFoundError):
            return {"": until_whole(str(url), request)}
        return {}

    def _create(self, name: str, content: bytes) -> None:
        # In one part: an upload in several cannot be conditional.
        put = partial(obstore.put, self.objects, name, content, mode="create", use_multipart=False)
        try:
            until_whole(f"{self}/{name}", put)
        except FileExistsError:
            # A PUT whose answer got lost is sent again, and meets itself.
            if self.read(name) != content:
                raise


class ObjectFile(io.RawIOBase):
    """One object, read in ranges, with the content that it had when it was opened.

    Small reads are served from a few blocks that are kept, since formats such as HDF5 read a few
    bytes here and a few there.
    """

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
