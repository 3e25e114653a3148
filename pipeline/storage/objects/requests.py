"""One request to an S3 or Google bucket through obstore: repeated if it may be, with our errors.

Credentials, endpoint and region are read by obstore from the environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_ENDPOINT_URL, AWS_REGION, AWS_ALLOW_HTTP,
GOOGLE_APPLICATION_CREDENTIALS, ...). Messages repeat only the status and the code of an answer: the
rest may quote the key's id and the signed request.
"""

import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url

from pipeline.errors import CutAnswerError, ObjectStorageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

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
_CAUSES: Final = {  # by what only their messages contain
    "/latest/": (  # the address of a cloud machine's own credentials
        "no credentials for object storage; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        "the credentials of your provider, in the environment"
    ),
    NO_BUCKET: "the bucket does not exist; create it, or use another --store",
    "BadScheme": "the endpoint is not https; use an https endpoint, or set AWS_ALLOW_HTTP=true",
}

Answer = TypeVar("Answer")


@lru_cache(maxsize=8)
def open_bucket(scheme: str, bucket: str) -> "ObjectStore":
    """Return obstore's handle of a bucket, shared by all files, which share its connections."""
    url = f"{scheme}://{bucket}"
    with reaching(url):
        return from_url(url, retry_config=RETRY)


def until_whole(url: str, request: Callable[[], Answer]) -> Answer:
    """Send a repeatable request, again if its answer breaks off; errors as in `reaching`."""
    for _ in range(CUT_ANSWERS - 1):
        with suppress(CutAnswerError), reaching(url):
            return request()
    with reaching(url):
        return request()


async def until_whole_async(url: str, request: Callable[[], Awaitable[Answer]]) -> Answer:
    """The same as `until_whole`, for zarr."""
    for _ in range(CUT_ANSWERS - 1):
        with suppress(CutAnswerError), reaching(url):
            return await request()
    with reaching(url):
        return await request()


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Replace obstore's errors by ours, without anything that may be secret.

    Raises:
        FileNotFoundError: there is no object at `url`.
        FileExistsError: it must be new, and exists.
        ObjectStorageError: the bucket does not exist, access is refused, or there is no answer.
        CutAnswerError: the answer broke off.
    """
    # `from None`: a traceback would print the answer, which may quote the signed request.
    try:
        yield
    except AlreadyExistsError:
        raise FileExistsError(f"{url}: exists already") from None
    except FileNotFoundError as error:
        if NO_BUCKET not in str(error):
            raise FileNotFoundError(f"{url}: does not exist") from None
        raise ObjectStorageError(f"{url}: {_explain(str(error))}") from None
    except BaseError as error:
        is_cut = "response body error" in str(error)
        kind = CutAnswerError if is_cut else ObjectStorageError
        raise kind(f"{url}: {_explain(str(error))}") from None


def _explain(text: str) -> str:
    """Return what went wrong and what to do, without the details of obstore's message."""
    for sign, explained in _CAUSES.items():
        if sign in text:
            return explained
    status = re.search(r"status code: (\d{3}[A-Za-z ]*)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    tries = re.search(r"after (\d+) retries", text)
    answer = "object storage does not respond"
    if status is not None:
        named = f" ({code[1]})" if code else ""
        answer = f"object storage responds with {status[1].strip()}{named}"
        if status[1].startswith("40"):
            return f"{answer}; check the credentials and the region in the environment"
    asked = f" after {tries[1]} retries" if tries else ""
    return (
        f"{answer}{asked}; check the network, AWS_ENDPOINT_URL and AWS_REGION, then run the same "
        f"command again"
    )
