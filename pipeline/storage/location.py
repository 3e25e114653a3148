"""A location: a path of this machine, or an address in object storage; `open.py` opens it."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from pipeline.errors import ConfigError

OBJECT_SCHEMES: Final = ("s3", "gs")

# Without the characters that separate credentials, a query or a fragment.
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PATH: Final = re.compile(r"[A-Za-z0-9._=+-]+(/[A-Za-z0-9._=+-]+)*")


@dataclass(frozen=True)
class ObjectUrl:
    """A prefix of a bucket, as `s3://bucket/path`; never with credentials."""

    scheme: str
    """One of `OBJECT_SCHEMES`."""
    bucket: str
    path: str
    """In the bucket; without a slash at either end."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.path}"

    def __truediv__(self, name: str) -> "ObjectUrl":
        return ObjectUrl(self.scheme, self.bucket, f"{self.path}/{name}".lstrip("/"))

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot."""
        return PurePosixPath(self.path).suffix

    @property
    def parent(self) -> "ObjectUrl":
        """The address without its last component."""
        return ObjectUrl(self.scheme, self.bucket, self.path.rpartition("/")[0])

    def resolve(self) -> "ObjectUrl":
        """Return the address; see `Path.resolve`."""
        return self


Location = Path | ObjectUrl


class FileEntry(NamedTuple):
    """A file of a listing."""

    name: str
    """Below the folder; `.` (empty in a bucket) if the location is a file."""
    size: int
    """Bytes."""
    stamp: str
    """Changes with the content: the time of change, or an etag."""


def parse_location(text: str) -> Location:
    """Parse a path, `s3://bucket/path`, `gs://...` or `file:///path`.

    Raises:
        ConfigError: it is another address; not repeated there, because it may hold a secret.
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


def on_disk(location: Location) -> Path | None:
    """Return a local path, for renames, locks and libraries that open paths; None of an address."""
    return location if isinstance(location, Path) else None
