"""A prefix of an S3 or Google bucket as a folder of files, through obstore.

Credentials, endpoint and region are those that obstore finds in the environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_ENDPOINT_URL, AWS_REGION, AWS_ALLOW_HTTP,
GOOGLE_APPLICATION_CREDENTIALS, ...). Of what object storage answers, messages repeat the status and
the error's code alone: the rest may quote the key's id and the signed request.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url

from pipeline.errors import ObjectStorageError
from pipeline.folders import READ_BYTES, LocalFolder, ObjectUrl, Stamp

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

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
CLIENT: Final["ClientConfig"] = {"timeout": timedelta(minutes=2)}  # of a request; a shard is 75 MB


class ObjectFolder:
    """Objects below a prefix; see `pipeline.folders.Folder` for what each method promises."""

    def __init__(self, location: ObjectUrl):
        """Prepare; nothing is asked of the object store yet.

        Raises:
            ObjectStorageError: the settings in the environment cannot be used.
        """
        self.location = location
        with reaching(str(location)):
            self.objects = from_url(str(location), retry_config=RETRY, client_options=CLIENT)
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
        with reaching(f"{self}/{name}"):
            for piece in obstore.get(self.objects, name).stream(min_chunk_size=READ_BYTES):
                yield bytes(piece)

    def stamp(self, name: str) -> Stamp:
        """Return etag, version and size; an etag follows the content. See `Folder.stamp`."""
        with reaching(f"{self}/{name}"):
            held = obstore.head(self.objects, name)
        return held["e_tag"], held["version"], held["size"]

    def names(self, below: str = "") -> Iterator[str]:
        """Return the names of all objects, or of those below a prefix."""
        with reaching(f"{self}/{below}"):
            for batch in obstore.list(self.objects, prefix=below or None):
                yield from (held["path"] for held in batch)

    def write(self, name: str, content: bytes) -> None:
        """Put an object; the last of several writers wins. See `Folder.write`."""
        with reaching(f"{self}/{name}"):
            obstore.put(self.objects, name, content)

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that are not there are passed over."""
        for name in names:
            with suppress(FileNotFoundError), reaching(f"{self}/{name}"):
                obstore.delete(self.objects, name)

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
            for name in sorted(names):
                with reaching(f"{self}/{name}"):
                    obstore.put(self.objects, name, Path(temporary, name))
            self.delete(set(self.names()) - names - {last})  # of a longer dataset, cut off
            self._create(last, filled.read(last))

    def _create(self, name: str, content: bytes) -> None:
        try:
            with reaching(f"{self}/{name}"):
                obstore.put(self.objects, name, content, mode="create")
        except FileExistsError:
            # A PUT whose answer got lost is sent again, and meets itself.
            if self.read(name) != content:
                raise


@contextmanager
def reaching(place: str) -> Iterator[None]:
    """Say in our words what obstore says of a request, and nothing that may be secret.

    Args:
        place: the address that is asked for.

    Raises:
        FileNotFoundError: nothing is there.
        FileExistsError: it must be new, and is there already.
        ObjectStorageError: the bucket is not there, access is refused, or there is no answer.
    """
    # `from None`: a traceback would print the answer, which may quote the signed request.
    try:
        yield
    except AlreadyExistsError:
        raise FileExistsError(f"{place}: is there already") from None
    except FileNotFoundError as error:
        if "NoSuchBucket" not in str(error):
            raise FileNotFoundError(f"{place}: is not there") from None
        raise ObjectStorageError(
            f"{place}: there is no such bucket; make it, or name another --store"
        ) from None
    except BaseError as error:
        raise ObjectStorageError(f"{place}: {_said(str(error))}") from None


def _said(text: str) -> str:
    """Return what went wrong and what to do, from obstore's words without their details."""
    status = re.search(r"status code: (\d{3}[A-Za-z ]*)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    tries = re.search(r"after (\d+) retries", text)
    if "169.254.169.254" in text:  # where a cloud's machines find theirs
        return (
            "no credentials for object storage; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or what else your provider takes, in the environment"
        )
    if status is None:
        answer = "object storage does not answer"
    else:
        named = f" ({code[1]})" if code else ""
        answer = f"object storage answers {status[1].strip()}{named}"
    if status is not None and status[1][:2] == "40":
        return f"{answer}; check the credentials and the region in the environment"
    asked = f" after {tries[1]} retries" if tries else ""
    return (
        f"{answer}{asked}; check the network and AWS_ENDPOINT_URL, then run the same command again"
    )
