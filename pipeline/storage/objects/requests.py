"""One request to an S3 or Google bucket through obstore: sent again where it may be, and our words.

Credentials, endpoint and region are those that obstore finds in the environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_ENDPOINT_URL, AWS_REGION, AWS_ALLOW_HTTP,
GOOGLE_APPLICATION_CREDENTIALS, ...). Of what object storage answers, messages repeat the status and
the error's code alone: the rest may quote the key's id and the signed request.
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

Answer = TypeVar("Answer")


@lru_cache(maxsize=8)
def open_bucket(scheme: str, bucket: str) -> "ObjectStore":
    """Return obstore's handle of a bucket; one for all files, which so share its connections.

    Raises:
        ObjectStorageError: the settings in the environment cannot be used.
    """
    url = f"{scheme}://{bucket}"
    with reaching(url):
        return from_url(url, retry_config=RETRY)


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
