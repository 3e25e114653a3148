"""Why a file of a dataset does not read, and the remedy that fits the cause.

Most files that do not read are whole: another process holds them, the user may not read them, or
`git clone` left a pointer in their place. None of these is helped by recording again. The cause is
found from the error's number and from the file's first bytes, here for all readers.
Source: git-lfs, docs/spec.md (pointer files); HDF5 file locking, H5Pset_file_locking.
"""

import errno
from pathlib import Path
from typing import Final

from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.errors import DatasetError
from pipeline.storage.location import Location, on_disk

GIT_LFS: Final = b"version https://git-lfs"
"""How a text file begins that git-lfs leaves in place of a large one."""
_MAX_LINE: Final = 200  # characters of a library's message
_POINTER: Final = "found a git-lfs pointer to it; run `git lfs pull` in the dataset's repository"
_WEB_PAGE: Final = "found a web page; download it again, signed in where its host asks for that"
_EMPTY: Final = f"found an empty file; download or copy it again, or {LEAVE_OUT}"
_OPEN_FOR_WRITING: Final = (
    "found it open for writing; close the recorder that has it open, or where that has crashed, "
    "run `h5clear -s` on a copy of the file"
)
_BY_NUMBER: Final = (
    (
        (errno.EAGAIN, errno.EBUSY, errno.ETXTBSY, errno.EDEADLK),
        "found it locked by another process; close the recorder or viewer that has it open",
    ),
    (
        (errno.EACCES, errno.EPERM),
        "found that this user may not read it; change its permissions with `chmod u+r`",
    ),
    ((errno.EMFILE,), "found too many files open; raise the limit with `ulimit -n`"),
    (
        (errno.EIO, errno.ESTALE),
        "found that its disk does not deliver it; check the disk or the mount, and try again",
    ),
)
_BY_START: Final = ((GIT_LFS, _POINTER), (b"<!doctype", _WEB_PAGE), (b"<html", _WEB_PAGE))
_UNITS: Final = ((1e3, "milliseconds"), (1e6, "microseconds"), (1e9, "nanoseconds"))
_UNIT_TOLERANCE: Final = 0.5  # of the rate; units are a thousand apart


def one_line(message: object) -> str:
    """Return a library's message on one line of at most 200 characters."""
    return " ".join(str(message).split())[:_MAX_LINE]


def why_unreadable(path: Location, error: object, otherwise: str) -> str:
    """Say what is there instead of a file that reads, and what to do.

    Args:
        path: the file.
        error: what a library raised on reading it, or what was wrong in words.
        otherwise: what to do where the file itself is damaged.

    Returns:
        `found ...; <what to do>`, the end of a message.
    """
    number = getattr(error, "errno", None)
    text = one_line(error)
    for numbers, cause in _BY_NUMBER:
        if number in numbers:
            return cause
    if "h5clear" in text:
        return _OPEN_FOR_WRITING
    return _instead(path) or f"found one that does not read ({text}); {otherwise}"


def require_no_pointer(path: Path, content: bytes) -> None:
    """Refuse the pointer that git-lfs leaves in place of a file.

    Raises:
        DatasetError: `content` is one.
    """
    if content.startswith(GIT_LFS):
        raise DatasetError(f"{path}: expected the file itself, {_POINTER}")


def _instead(path: Location) -> str | None:
    """Say what is at a path instead of a file with content, from its kind and first bytes."""
    file = on_disk(path)
    if file is None:
        return None
    if not file.is_file():
        is_there = "something that is no file" if file.exists() else "nothing"
        return f"found {is_there}; correct the path to it, or download it"
    try:
        with file.open("rb") as content:
            start = content.read(64).lstrip().lower()
    except OSError:
        return None
    if not start:
        return _EMPTY
    return next((cause for first, cause in _BY_START if start.startswith(first)), None)


def clock_unit(found: float, expected: float) -> str | None:
    """Return the unit of a clock that runs a thousand, a million, ... times too fast.

    Args:
        found: time between two steps, as the clock says.
        expected: seconds between them, by the number of steps and their rate.
    """
    ratio = found / expected if expected > 0 else 0.0
    return next(
        (unit for factor, unit in _UNITS if abs(ratio / factor - 1) < _UNIT_TOLERANCE), None
    )
