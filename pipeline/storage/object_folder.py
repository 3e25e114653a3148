"""A prefix of an S3 or Google bucket as a folder of files, through obstore.

Credentials, endpoint and region are those that obstore finds in the environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_ENDPOINT_URL, AWS_REGION, AWS_ALLOW_HTTP,
GOOGLE_APPLICATION_CREDENTIALS, ...). Of what object storage answers, messages repeat the status and
the error's code alone: the rest may quote the key's id and the signed request.
"""

import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url

from pipeline.errors import CutAnswerError, ObjectStorageError
from pipeline.storage.folders import READ_BYTES, LocalFolder, ObjectUrl, Stamp

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import RetryConfig

# No client options: they would replace those of the environment, AWS_ALLOW_HTTP among them.
# Half a minute of outage passes unseen; a longer one ends the command, which then resumes.
RETRY: "RetryConfig" = {
    "max_retries": 10,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=5),
        "base": 2,
    },
}
CUT_ANSWERS: Final = 5  # tries where an answer breaks off: obstore mends that for reads alone
NO_BUCKET: Final = "NoSuchBucket"  # S3's code
NAMES_A_PAGE = 1_000  # what S3 lists in an answer

Answer = TypeVar("Answer")


class ObjectFolder:
    """Objects below a prefix; `pipeline.storage.folders.Folder` says what each method promises."""

    def __init__(self, location: ObjectUrl):
        """Prepare; nothing is asked of the object store yet.

        Raises:
            ObjectStorageError: the settings in the environment cannot be used.
        """
        self.location = location
        with reaching(str(location)):
            self.objects = from_url(str(location), retry_config=RETRY)
        """obstore's own handle; paths are relative to the location."""

    def __str__(self) -> str:
        return str(self.location)

    def exists(self, name: str) -> bool:
        """Whether there is an object of this name."""
        try:
            self.stamp(name)
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> bytes:
        """Return an object's content; see `Folder.read`."""
        return b"".join(self.read_pieces(name))

    def read_pieces(self, name: str) -> Iterator[bytes]:
        """Return an object's content in pieces; see `Folder.read_pieces`."""
        place = f"{self}/{name}"
        answer = until_whole(place, partial(obstore.get, self.objects, name))
        with reaching(place):
            for piece in answer.stream(min_chunk_size=READ_BYTES):
                yield bytes(piece)

    def stamp(self, name: str) -> Stamp:
        """Return etag, version, size and time; an etag follows the content. See `Folder.stamp`."""
        with reaching(f"{self}/{name}"):
            held = obstore.head(self.objects, name)
        return held["e_tag"], held["version"], held["size"], held["last_modified"]

    def names(self, below: str = "") -> Iterator[str]:
        """Return the names of all objects, or of those below a prefix."""
        return (held["path"] for held in self.entries(below))

    def entries(self, below: str = "") -> Iterator["ObjectMeta"]:
        """Return what a listing says of all objects, or of those below a prefix."""
        page = self._page(below, None)
        while page:
            yield from page
            page = self._page(below, page[-1]["path"])

    def write(self, name: str, content: bytes) -> None:
        """Put an object; the last of several writers wins. See `Folder.write`."""
        self._put(name, content)

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that are not there are passed over."""
        for name in names:
            with suppress(FileNotFoundError):
                until_whole(f"{self}/{name}", partial(obstore.delete, self.objects, name))

    def settle(self, name: str) -> None:
        """Do nothing: an answered PUT is durable."""

    def is_vacant(self, parts: Collection[str]) -> bool:
        """Whether nothing is here, or what a crash in `made` left; see `Folder.is_vacant`."""
        return all(name.split("/")[0] in parts for name in self.names())

    @contextmanager
    def made(self, last: str) -> Iterator[Path]:
        """Fill a temporary folder and put its files, the last one if no other is there by then.

        See `Folder.made`. Two processes that make the same folder put the same bytes, and both
        succeed.
        """
        with TemporaryDirectory() as temporary:
            yield Path(temporary)
            filled = LocalFolder(Path(temporary))
            names = set(filled.names()) - {last}
            # Before the first PUT: what is added later may be another process's committed work.
            leftovers = set(self.names()) - names
            if last not in leftovers:
                for name in sorted(names):
                    self._put(name, Path(temporary, name))
                self.delete(leftovers)
            self._create(last, filled.read(last))

    def _page(self, below: str, after: str | None) -> "Sequence[ObjectMeta]":
        def first_page() -> "Sequence[ObjectMeta]":
            prefix = below or None
            pages = obstore.list(self.objects, prefix, offset=after, chunk_size=NAMES_A_PAGE)
            return next(iter(pages), ())

        return until_whole(f"{self}/{below}".rstrip("/"), first_page)

    def _put(self, name: str, content: bytes | Path) -> None:
        until_whole(f"{self}/{name}", partial(obstore.put, self.objects, name, content))

    def _create(self, name: str, content: bytes) -> None:
        # In one part: an upload in several cannot be conditional.
        put = partial(obstore.put, self.objects, name, content, mode="create", use_multipart=False)
        try:
            until_whole(f"{self}/{name}", put)
        except FileExistsError:
            # A PUT whose answer got lost is sent again, and meets itself.
            if self.read(name) != content:
                raise


def until_whole(place: str, request: Callable[[], Answer]) -> Answer:
    """Send a request that may be sent twice, again where its answer breaks off.

    Raises:
        FileNotFoundError, FileExistsError, ObjectStorageError: as `reaching`.
    """
    for _ in range(CUT_ANSWERS - 1):
        with suppress(CutAnswerError), reaching(place):
            return request()
    with reaching(place):
        return request()


async def until_whole_async(place: str, request: Callable[[], Awaitable[Answer]]) -> Answer:
    """Do as `until_whole`, for zarr."""
    for _ in range(CUT_ANSWERS - 1):
        with suppress(CutAnswerError), reaching(place):
            return await request()
    with reaching(place):
        return await request()


@contextmanager
def reaching(place: str) -> Iterator[None]:
    """Say in our words what obstore says of a request, and nothing that may be secret.

    Args:
        place: the address that is asked for.

    Raises:
        FileNotFoundError: nothing is there.
        FileExistsError: it must be new, and is there already.
        ObjectStorageError: the bucket is not there, access is refused, or there is no answer.
        CutAnswerError: the answer broke off.
    """
    # `from None`: a traceback would print the answer, which may quote the signed request.
    try:
        yield
    except AlreadyExistsError:
        raise FileExistsError(f"{place}: is there already") from None
    except FileNotFoundError as error:
        if NO_BUCKET not in str(error):
            raise FileNotFoundError(f"{place}: is not there") from None
        raise ObjectStorageError(f"{place}: {_said(str(error))}") from None
    except BaseError as error:
        is_cut = "response body error" in str(error)
        kind = CutAnswerError if is_cut else ObjectStorageError
        raise kind(f"{place}: {_said(str(error))}") from None


def _said(text: str) -> str:
    """Return what went wrong and what to do, from obstore's words without their details."""
    status = re.search(r"status code: (\d{3}[A-Za-z ]*)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    tries = re.search(r"after (\d+) retries", text)
    if "/latest/" in text:  # where a cloud's machines ask for theirs
        return (
            "no credentials for object storage; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or what else your provider takes, in the environment"
        )
    if NO_BUCKET in text:
        return "there is no such bucket; make it, or name another --store"
    if "BadScheme" in text:
        return "the endpoint is not https; name one that is, or set AWS_ALLOW_HTTP=true"
    if status is None:
        answer = "object storage does not answer"
    else:
        named = f" ({code[1]})" if code else ""
        answer = f"object storage answers {status[1].strip()}{named}"
    if status is not None and status[1][:2] == "40":
        return f"{answer}; check the credentials and the region in the environment"
    asked = f" after {tries[1]} retries" if tries else ""
    return (
        f"{answer}{asked}; check the network, AWS_ENDPOINT_URL and AWS_REGION, then run the same "
        f"command again"
    )
