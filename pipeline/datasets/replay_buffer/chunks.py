"""Which files a Zarr v2 array on a disk or in a zip has, and whether all its chunks are there.

Zarr answers a chunk that is absent with the fill value, that is with black frames and zeros, and
says nothing; so they are looked for before and after every reading. Knows file names; nothing of
codecs and episodes.
Source: zarr-specs, docs/v2/v2.0.rst, "Chunk keys": indices joined by the dimension separator.
"""

import os
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.datasets.limits import MAX_METADATA_BYTES
from pipeline.datasets.manifest.paths import require_small_file, resolve_inside
from pipeline.errors import DatasetError

MAX_CHUNK_BYTES: Final = 2**29  # decoded; an array of numbers is often one chunk
_HEADERS: Final = (".zgroup", ".zattrs", ".zarray")
_CODEC_BYTES: Final = 2**16  # by which a codec makes a chunk that does not compress longer, at most


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
        return (self.separator.join(map(str, index)) for index in _indices(axes))


def _indices(axes: list[range]) -> Iterator[tuple[int, ...]]:
    """Yield every index, the last axis fastest; `itertools.product` would first list each axis."""
    if not axes:
        yield ()
        return
    for index in axes[0]:
        for rest in _indices(axes[1:]):
            yield (index, *rest)


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
                require_small_file(root, name, allow_outside=allow_outside)
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
        if not path.is_file():  # a pipe would wait for its writer
            raise FileNotFoundError("no file")
        with zipfile.ZipFile(path) as archive:
            return {item.filename: item.file_size for item in archive.infolist()}
    except (
        *(zipfile.BadZipFile, OSError, NotImplementedError),
        *(ValueError, struct.error),
    ) as error:
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
    place: str,
    grid: ChunkGrid,
    sizes: dict[str, int],
    rows: Sequence[tuple[int, int]],
    *,
    chunk_bytes: int,
    compressed: bool,
    advice: str,
) -> None:
    """Refuse an array of which a chunk was never written, or whose header cannot be true.

    Args:
        place: file and key, for messages.
        grid: how the array is cut.
        sizes: bytes of each file of the array.
        rows: ranges [start, stop) of rows that are wanted, ascending; only their chunks are
            looked at.
        chunk_bytes: bytes of one decoded chunk.
        compressed: whether a codec made the files smaller; without one they are `chunk_bytes` long.
        advice: what else to do than to copy the data again, for the ends of messages.

    Raises:
        DatasetError: a chunk is absent, cut off, or larger than any chunk can be.
    """
    if not 0 < chunk_bytes <= MAX_CHUNK_BYTES:
        raise DatasetError(
            f"{place}: expected chunks of 1 to {MAX_CHUNK_BYTES} bytes, found a header that says "
            f"{chunk_bytes}; write the array again in smaller chunks"
        )
    seen = 0  # rows whose chunks have been looked at
    for start, stop in rows:
        # Ends at the first absent chunk, so a header that claims billions costs no time.
        for name in grid.names(max(start, seen), stop) if stop > seen else ():
            size = sizes.get(name)
            if size is None:
                raise absent_chunk(place, name, f"chunks for rows [{start}, {stop})", advice)
            if not compressed and size != chunk_bytes:
                raise DatasetError(
                    f"{place}: expected {chunk_bytes} bytes in chunk {name}, found {size}: the "
                    f"copy was cut off; copy or download it again{advice}"
                )
            if size > 2 * chunk_bytes + _CODEC_BYTES:
                raise DatasetError(
                    f"{place}: expected a chunk {name} that unpacks to {chunk_bytes} bytes, found "
                    f"{size} bytes; copy or download the data again{advice}"
                )
        seen = max(seen, -(-stop // grid.chunks[0]) * grid.chunks[0])


class StoredFiles:
    """The files of a folder or a zip, for a look into them."""

    def __init__(self, root: Path) -> None:
        """Open the zip, where it is one."""
        self._root = root
        self._zip = None if root.is_dir() else zipfile.ZipFile(root)

    def begin(self, name: str, num_bytes: int | None) -> tuple[bytes, int]:
        """Return the first bytes of a file, all for None, and its size in bytes.

        Raises:
            FileNotFoundError: there is no such file; its message is the file's last name.
        """
        try:
            if self._zip is not None:
                with self._zip.open(name) as member:
                    return member.read(-1 if num_bytes is None else num_bytes), self._zip.getinfo(
                        name
                    ).file_size
            with (self._root / name).open("rb") as file:
                return file.read(-1 if num_bytes is None else num_bytes), os.fstat(
                    file.fileno()
                ).st_size
        except (KeyError, FileNotFoundError) as error:
            raise FileNotFoundError(name.rpartition("/")[2]) from error

    def close(self) -> None:
        """Close the zip."""
        if self._zip is not None:
            self._zip.close()


def absent_chunk(place: str, name: str, wanted: str, advice: str) -> DatasetError:
    """Build the error for a chunk that is not there."""
    return DatasetError(
        f"{place}: expected {wanted}, found no chunk {name}, which Zarr would read as zeros; copy "
        f"the data again, or write it with write_empty_chunks=True if it is all zeros{advice}"
    )
