"""Objects below a prefix of a bucket, as a folder of files.

Nothing can be renamed or locked here. An acknowledged PUT is durable and whole, and the last of two
writers wins; `made` writes its last file only if no other process has.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from io import RawIOBase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import obstore
from obstore.store import from_url

from pipeline.storage.folder import FileEntry
from pipeline.storage.local import LocalFolder
from pipeline.storage.location import ObjectUrl
from pipeline.storage.objects.file import ObjectFile
from pipeline.storage.objects.requests import RETRY, open_bucket, reaching, until_whole

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

NAMES_A_PAGE = 1_000  # what S3 lists in an answer


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
        return any(self._listed())

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
        return sorted(self._listed())

    def read(self, name: str) -> bytes:
        return until_whole(f"{self}/{name}", lambda: bytes(obstore.get(self.objects, name).bytes()))

    def open(self, name: str) -> RawIOBase:
        return ObjectFile(self.location / name)

    def names(self, below: str = "") -> Iterator[str]:
        return (held["path"] for held in self._entries(below))

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

    def _entries(self, below: str = "") -> Iterator["ObjectMeta"]:
        page = self._page(below, None)
        while page:
            yield from page
            page = self._page(below, page[-1]["path"])

    def _listed(self) -> Iterator[FileEntry]:
        is_folder = False
        for held in self._entries():
            is_folder = True
            yield FileEntry(held["path"], held["size"], held["e_tag"] or "")
        if is_folder:
            return
        url = self.location
        request = partial(obstore.head, open_bucket(url.scheme, url.bucket), url.path)
        try:
            held = until_whole(str(url), request)
        except FileNotFoundError:
            return
        yield FileEntry("", held["size"], held["e_tag"] or "")

    def _page(self, below: str, after: str | None) -> "Sequence[ObjectMeta]":
        def first_page() -> "Sequence[ObjectMeta]":
            prefix = below or None
            pages = obstore.list(self.objects, prefix, offset=after, chunk_size=NAMES_A_PAGE)
            return next(iter(pages), ())

        return until_whole(f"{self}/{below}".rstrip("/"), first_page)

    def _create(self, name: str, content: bytes) -> None:
        # In one part: an upload in several cannot be conditional.
        put = partial(obstore.put, self.objects, name, content, mode="create", use_multipart=False)
        try:
            until_whole(f"{self}/{name}", put)
        except FileExistsError:
            # A PUT whose answer got lost is sent again, and meets itself.
            if self.read(name) != content:
                raise
