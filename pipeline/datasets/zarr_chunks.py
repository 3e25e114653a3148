"""Which chunk files a Zarr v2 array on a disk or in a zip has, and whether all are there.

Zarr answers a chunk that is absent with the fill value, that is with black frames and zeros, and
says nothing; so they are looked for before and after every reading. Knows file names; nothing of
codecs and episodes.
Source: zarr-specs, docs/v2/v2.0.rst, "Chunk keys": indices joined by the dimension separator.
"""

import math
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.datasets.paths import resolve_inside
from pipeline.errors import DatasetError

MAX_CHUNK_BYTES: Final = 2**31  # decoded; what Blosc can hold, and more than a header may claim
_BLOSC_HEADER: Final = 16  # bytes


@dataclass(frozen=True)
class ChunkGrid:
    """How an array is cut into chunks, as its header says."""

    shape: tuple[int, ...]
    """Length of each axis of the array; the first are control steps."""
    chunks: tuple[int, ...]
    """Length of each axis of a chunk, at least 1."""
    separator: str
    """What joins the indices in a chunk's name: `.` or `/`."""

    @property
    def num_chunks(self) -> int:
        """Number of chunks of the whole array."""
        axes = zip(self.shape, self.chunks, strict=True)
        return math.prod(-(-length // chunk) for length, chunk in axes)

    def names(self, start: int, stop: int) -> Iterator[str]:
        """Name the chunks that hold rows [start, stop), one after another."""
        first = range(start // self.chunks[0], -(-stop // self.chunks[0]))
        others = zip(self.shape[1:], self.chunks[1:], strict=True)
        axes = [first, *(range(-(-length // chunk)) for length, chunk in others)]
        return (self.separator.join(map(str, index)) for index in _indices(axes))


def _indices(axes: list[range]) -> Iterator[tuple[int, ...]]:
    """Yield every index, the last axis fastest; `itertools.product` would first list each axis."""
    if not axes:
        yield ()
        return
    for index in axes[0]:
        for rest in _indices(axes[1:]):
            yield (index, *rest)


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
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise DatasetError(
            f"{path}: expected a whole zip of a Zarr v2 replay buffer, found one that does not "
            f"open ({error}); copy or download it again"
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
    place: str, grid: ChunkGrid, sizes: dict[str, int], chunk_bytes: int, *, compressed: bool
) -> None:
    """Refuse an array of which a chunk was never written, or whose header cannot be true.

    Args:
        place: file and key, for messages.
        grid: how the array is cut.
        sizes: bytes of each file of the array.
        chunk_bytes: bytes of one decoded chunk.
        compressed: whether a codec made the files smaller; without one they are `chunk_bytes` long.

    Raises:
        DatasetError: a chunk is absent, cut off, or larger than any chunk can be.
    """
    if not 0 < chunk_bytes <= MAX_CHUNK_BYTES:
        raise DatasetError(
            f"{place}: expected chunks of 1 to {MAX_CHUNK_BYTES} bytes, found a header that says "
            f"{chunk_bytes}; write the array again in smaller chunks"
        )
    if grid.num_chunks > len(sizes):  # then one of the first len(sizes) + 1 is absent
        first = next(name for name in grid.names(0, grid.shape[0]) if name not in sizes)
        raise absent_chunk(place, first, f"{grid.num_chunks} chunks")
    for name in grid.names(0, grid.shape[0]):
        if name not in sizes:
            raise absent_chunk(place, name, f"{grid.num_chunks} chunks")
        if not compressed and sizes[name] != chunk_bytes:
            raise DatasetError(
                f"{place}: expected {chunk_bytes} bytes in chunk {name}, found {sizes[name]}: the "
                "copy was cut off; copy or download it again"
            )


class StoredFiles:
    """The files of a folder or a zip, for a look at how they begin."""

    def __init__(self, root: Path) -> None:
        """Open the zip, where it is one."""
        self._root = root
        self._zip = None if root.is_dir() else zipfile.ZipFile(root)

    def head(self, name: str) -> tuple[bytes, int]:
        """Return the first 16 bytes of a file, and its size in bytes.

        Raises:
            FileNotFoundError: there is no such file; its message is the file's last name.
        """
        try:
            if self._zip is not None:
                with self._zip.open(name) as member:
                    return member.read(_BLOSC_HEADER), self._zip.getinfo(name).file_size
            with (self._root / name).open("rb") as file:
                return file.read(_BLOSC_HEADER), os.fstat(file.fileno()).st_size
        except (KeyError, FileNotFoundError) as error:
            raise FileNotFoundError(name.rpartition("/")[2]) from error

    def close(self) -> None:
        """Close the zip."""
        if self._zip is not None:
            self._zip.close()


def require_whole_blosc(head: bytes, size: int) -> None:
    """Refuse a Blosc chunk that was cut off: the decoder would read on in foreign memory.

    Args:
        head: the first 16 bytes of the chunk.
        size: bytes of the chunk's file.

    Raises:
        ValueError: the header is too short, or says another size.

    Source: Blosc/c-blosc, README_CHUNK_FORMAT.rst: `cbytes` at 12, 32 bits, little-endian.
    """
    if len(head) < _BLOSC_HEADER or (stated := int.from_bytes(head[12:16], "little")) != size:
        found = f"a header of {stated} bytes" if len(head) == _BLOSC_HEADER else "no header"
        raise ValueError(f"{size} bytes of Blosc with {found}")


def absent_chunk(place: str, name: str, wanted: str) -> DatasetError:
    """Build the error for a chunk that is not there."""
    return DatasetError(
        f"{place}: expected {wanted}, found no chunk {name}, which Zarr would read as zeros; copy "
        "the data again, or write it with write_empty_chunks=True if it is all zeros"
    )
