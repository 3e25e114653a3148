"""Why a file of a dataset does not read, and the remedy that fits the cause.

Most files that do not read are whole: another process has locked them, the user may not read them,
or `git clone` left a pointer instead of them. The cause is found from the error's number and from
the file's first bytes, for all readers.
Source: git-lfs, docs/spec.md (pointer files); HDF5 file locking, H5Pset_file_locking.
"""

import errno
from pathlib import Path
from typing import Final

from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.errors import DatasetError
from pipeline.storage.location import Location, on_disk
from policy.errors import one_line

GIT_LFS: Final = b"version https://git-lfs"
"""How a text file begins that git-lfs leaves instead of a large one."""
_POINTER: Final = "found a git-lfs pointer to it; run `git lfs pull` in the dataset's repository"
_EMPTY: Final = f"found an empty file; download or copy it again, or {LEAVE_OUT}"
_OPEN_FOR_WRITING: Final = (
    "found it open for writing; close the recorder that has it open, or if that has crashed, "
    "run `h5clear -s` on a copy of the file"
)
_LOCKED: Final = "found it locked by another process; close the recorder or viewer that has it open"
_BY_NUMBER: Final = {
    errno.EAGAIN: _LOCKED,
    errno.EBUSY: _LOCKED,
    errno.EDEADLK: _LOCKED,
    errno.EACCES: "found no permission to read it; run `chmod u+r` on it",
    errno.EMFILE: "found too many files open; raise the limit with `ulimit -n`",
    errno.EIO: "found a read error of the disk; check the disk or the mount, then try again",
}
_UNITS: Final = ((1e3, "milliseconds"), (1e6, "microseconds"), (1e9, "nanoseconds"))
_UNIT_TOLERANCE: Final = 0.5  # of the rate; units are a thousand apart


def why_unreadable(path: Location, error: object, otherwise: str) -> str:
    """Return `found ...; <what to do>`, the end of a message about a file that does not read.

    Args:
        path: the file.
        error: what a library raised on reading it, or what was wrong in words.
        otherwise: what to do if the file itself is damaged.
    """
    number, text = getattr(error, "errno", None), one_line(error)
    if number in _BY_NUMBER:
        return _BY_NUMBER[number]
    if "h5clear" in text:
        return _OPEN_FOR_WRITING
    return _instead(path) or f"found an unreadable one ({text}); {otherwise}"


def require_no_pointer(path: Path, content: bytes) -> None:
    """Refuse the pointer that git-lfs leaves instead of a file (DatasetError: `content` is one)."""
    if content.startswith(GIT_LFS):
        raise DatasetError(f"{path}: expected the file itself, {_POINTER}")


def _instead(path: Location) -> str | None:
    """Describe what is at a path instead of a file with content."""
    file = on_disk(path)
    if file is None or file.is_dir():
        return None
    if not file.exists():
        return "found nothing; correct the path to it, or download it"
    try:
        with file.open("rb") as content:
            start = content.read(64).lstrip().lower()
    except OSError:
        return None
    if start.startswith((b"<!doctype", b"<html")):
        return "found a web page; download it again, signed in if its host requires that"
    if start.startswith(GIT_LFS):
        return _POINTER
    return None if start else _EMPTY


def clock_unit(found: float, expected: float) -> str | None:
    """Return the unit of a clock that runs a thousand, a million, ... times too fast.

    `found` is the time between two steps by the clock, `expected` the seconds by their rate.
    """
    ratio = found / expected if expected > 0 else 0.0
    return next(
        (unit for factor, unit in _UNITS if abs(ratio / factor - 1) < _UNIT_TOLERANCE), None
    )
