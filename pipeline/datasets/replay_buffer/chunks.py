"""Which files a Zarr v2 array on a disk or in a zip has, and whether all its chunks are there.

Zarr answers a chunk that is absent with the fill value, that is with black frames and zeros, and
says nothing; so they are looked for when an array is opened and before every reading.
Source: zarr-specs, docs/v2/v2.0.rst, "Chunk keys": indices joined by the dimension separator;
Blosc/c-blosc, README_CHUNK_FORMAT.rst (`cbytes` at 12, 32 bits, little-endian).
"""

import itertools
import os
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.datasets.causes import GIT_LFS, why_unreadable
from pipeline.datasets.limits import MAX_METADATA_BYTES
from pipeline.datasets.manifest.paths import read_small_file, resolve_inside
from pipeline.errors import DatasetError

MAX_CHUNK_BYTES: Final = 2**29  # decoded; an array of numbers is often one chunk
_START_BYTES: Final = 32  # of a chunk; Blosc says in the bytes from 12 to 16 how long it is
_HEADERS: Final = (".zgroup", ".zattrs", ".zarray")


@dataclass(frozen=True)
class ChunkGrid:
    """How an array is cut into chunks, as its header says."""

    shape: tuple[int, ...]
    """Length of each axis of the array; the first are control steps."""
    chunks: tuple[int, ...]
    """Length of each axis of a chunk, at least 1."""
    separator: str
    """What joins the indices in a chunk's name: `.` or `/`."""

    def names(self, start: int, stop: int) -> Iterator[str]:
        """Name the chunks that hold rows [start, stop), one after another."""
        first = range(start // self.chunks[0], -(-stop // self.chunks[0]))
        others = zip(self.shape[1:], self.chunks[1:], strict=True)
        axes = [first, *(range(-(-length // chunk)) for length, chunk in others)]
        return (self.separator.join(map(str, index)) for index in itertools.product(*axes))


def require_headers(root: Path, folder: str, *, allow_outside: bool) -> None:
    """Refuse headers that lie elsewhere or never end, before Zarr reads them.

    Args:
        root: a folder, or a `.zip`.
        folder: of a group or an array below it: `data/img`; empty for the root itself.
        allow_outside: whether symbolic links may lead out of `root`.

    Raises:
        DatasetError: a header leads out of `root`, is no file, or is larger than any header.
    """
    names = [f"{folder}/{name}".lstrip("/") for name in _HEADERS]
    if root.is_dir():
        for name in names:
            if (root / name).is_symlink() or (root / name).exists():
                read_small_file(root, name, allow_outside=allow_outside)
        return
    sizes = zip_members(root)
    for name in names:
        if sizes.get(name, 0) > MAX_METADATA_BYTES:
            raise DatasetError(
                f"{root}: {name}: expected a header of at most {MAX_METADATA_BYTES} bytes, found "
                f"{sizes[name]}; copy or download the data again"
            )


def has_array(root: Path, key: str) -> bool:
    """Whether there is an array's header at a key.

    Raises:
        DatasetError: a zip that does not open.
    """
    header = f"{key}/.zarray"
    return (root / header).exists() if root.is_dir() else header in zip_members(root)


def array_keys(root: Path) -> tuple[str, ...]:
    """Return the keys of the arrays in the group `data`, sorted: `data/action`, `data/img`.

    Raises:
        DatasetError: a zip that does not open.
    """
    if root.is_dir():
        found = [f"data/{path.parent.name}" for path in root.glob("data/*/.zarray")]
    else:
        parts = [name.split("/") for name in zip_members(root)]
        found = [
            f"data/{p[1]}" for p in parts if len(p) == 3 and (p[0], p[2]) == ("data", ".zarray")
        ]
    return tuple(sorted(found))


def zip_members(path: Path) -> dict[str, int]:
    """Return the size in bytes of every file in a zip; nothing is unpacked.

    Raises:
        DatasetError: the file is no zip, or was cut off.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {item.filename: item.file_size for item in archive.infolist()}
    except (
        *(zipfile.BadZipFile, OSError, NotImplementedError),
        *(ValueError, struct.error),
    ) as error:
        raise DatasetError(
            f"{path}: expected a whole zip of a Zarr v2 replay buffer, "
            + why_unreadable(path, error, "copy or download it again")
        ) from error


def stored_files(root: Path, key: str, *, allow_outside: bool) -> dict[str, int]:
    """Return the size in bytes of every file of one array, by its name below the array.

    Args:
        root: a folder, or a `.zip`.
        key: the array: `data/img`.
        allow_outside: whether symbolic links may lead out of `root`.

    Raises:
        DatasetError: a link leads out of `root`, or a zip does not open.
    """
    if not root.is_dir():
        members, prefix = zip_members(root), f"{key}/"
        return {
            name.removeprefix(prefix): size
            for name, size in members.items()
            if name.startswith(prefix) and not name.endswith("/")
        }
    top = resolve_inside(root, key, allow_outside=allow_outside)
    found: dict[str, int] = {}
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(top / below) as entries:
            for entry in entries:
                name = f"{below}{entry.name}"
                if entry.is_symlink():
                    resolve_inside(root, f"{key}/{name}", allow_outside=allow_outside)
                elif entry.is_dir():
                    pending.append(f"{name}/")
                if entry.is_file():
                    found[name] = entry.stat().st_size
    return found


def require_chunks(
    place: str,
    grid: ChunkGrid,
    files: "ArrayFiles",
    rows: Sequence[tuple[int, int]],
    *,
    chunk_bytes: int,
    compressed: bool,
    advice: str,
) -> None:
    """Refuse an array of which a chunk was never written or was cut off.

    Args:
        place: file and key, for messages.
        grid: how the array is cut.
        files: the array's.
        rows: ranges [start, stop) of rows that are wanted, ascending; only their chunks are
            looked at.
        chunk_bytes: bytes of one decoded chunk.
        compressed: whether a codec made the files smaller; without one they are `chunk_bytes` long.
        advice: what else to do than to copy the data again, for the ends of messages.

    Raises:
        DatasetError: a chunk is absent or cut off, or one would fill the memory.
    """
    if not 0 < chunk_bytes <= MAX_CHUNK_BYTES:
        raise DatasetError(
            f"{place}: expected chunks of 1 to {MAX_CHUNK_BYTES} bytes, found a header that says "
            f"{chunk_bytes}; write the array again in smaller chunks"
        )
    seen = 0  # rows whose chunks have been looked at
    for start, stop in rows:
        for name in grid.names(max(start, seen), stop) if stop > seen else ():
            size = files.sizes.get(name)
            if size is None:
                raise absent_chunk(place, name, f"chunks for rows [{start}, {stop})", advice)
            if not compressed and size != chunk_bytes:
                problem = f"{size} bytes of {chunk_bytes}: it was cut off"
                found = files.why_unreadable(name, problem, f"copy it again{advice}")
                raise DatasetError(f"{place}: chunk {name}: expected it whole, {found}")
        seen = max(seen, -(-stop // grid.chunks[0]) * grid.chunks[0])


class ArrayFiles:
    """The chunks of one array of a folder or a zip."""

    def __init__(self, root: Path, key: str, *, allow_outside: bool) -> None:
        """List the files of an array.

        Raises:
            DatasetError: a link leads out of `root`, or a zip does not open.
        """
        self._root, self._key = root, key
        self._zip: zipfile.ZipFile | None = None
        self.sizes = stored_files(root, key, allow_outside=allow_outside)

    def require_whole(self, name: str, codec: Any) -> None:
        """Refuse a chunk that vanished, which Zarr reads as zeros, or was cut off in silence.

        Blosc is the codec that does not notice: it reads on behind the end of its input.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it was cut off.
        """
        if self._root.is_dir():
            with (self._root / self._key / name).open("rb") as file:
                start, size = file.read(_START_BYTES), os.fstat(file.fileno()).st_size
        else:
            self._zip = self._zip or zipfile.ZipFile(self._root)
            with self._zip.open(f"{self._key}/{name}") as member:
                start, size = member.read(_START_BYTES), self.sizes[name]
        stated = int.from_bytes(start[12:16], "little")
        if getattr(codec, "codec_id", None) == "blosc" and stated != size:
            raise ValueError(f"{size} bytes of Blosc of which {stated} were written")
        if start.startswith(GIT_LFS):
            raise ValueError("a pointer of git-lfs")

    def close(self) -> None:
        """Close the zip; looking into it opens it again."""
        if self._zip is not None:
            self._zip.close()
            self._zip = None

    def why_unreadable(self, name: str, error: object, otherwise: str) -> str:
        """Say what is there instead of a chunk that reads, and what to do, as `causes` does."""
        path = self._root / self._key / name if self._root.is_dir() else self._root
        return why_unreadable(path, error, otherwise)


def absent_chunk(place: str, name: str, wanted: str, advice: str) -> DatasetError:
    """Build the error for a chunk that is not there."""
    return DatasetError(
        f"{place}: expected {wanted}, found no chunk {name}, which Zarr would read as zeros; copy "
        f"the data again, or write it with write_empty_chunks=True if it is all zeros{advice}"
    )
