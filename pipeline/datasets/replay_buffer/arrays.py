"""The arrays of a Zarr v2 replay buffer, read with zarr, and without its fill values.

Zarr reads a missing chunk as its fill value, that is as black frames and zeros, without an error;
and Blosc reads memory behind the end of a chunk that was cut off. `_WholeChunks` refuses both.
Source: zarr-specs, docs/v2/v2.0.rst, "Chunk keys": indices joined by the dimension separator;
Blosc/c-blosc, README_CHUNK_FORMAT.rst (`cbytes` at 12, 32 bits, little-endian).
"""

import itertools
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import zarr
import zarr.storage

from pipeline.datasets.causes import GIT_LFS, why_unreadable
from pipeline.datasets.manifest.paths import resolve_inside
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.errors import DatasetError
from policy.errors import one_line

ENDS_KEY: Final = "meta/episode_ends"
DAMAGE: Final = (  # what zarr and its codecs raise for damaged bytes and headers
    *(RuntimeError, ValueError, TypeError, OSError, EOFError, OverflowError, KeyError),
    *(AttributeError, NotImplementedError, zlib.error, lzma.LZMAError, zipfile.BadZipFile),
    struct.error,
)
_BLOSC_SIZE: Final = slice(12, 16)  # bytes of a Blosc chunk that contain its length


class _WholeChunks(zarr.storage.WrapperStore[Any]):
    """A store in which a missing chunk, or a Blosc chunk that was cut off, is an error."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.blosc: set[str] = set()  # keys of arrays

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Return what is stored at a key, as `zarr.abc.store.Store.get` does.

        Raises:
            FileNotFoundError: there is no such chunk.
            ValueError: it was cut off, or is a git-lfs pointer.
        """
        value = await super().get(key, prototype, byte_range)
        group, array, *chunk = key.split("/")[:3] if "/" in key else (key, "")
        if not chunk or chunk[0].startswith("."):  # a header
            return value
        if value is None:
            raise FileNotFoundError(f"chunk {key} is missing (Zarr would read it as zeros)")
        start = value.as_numpy_array()[:32].tobytes()
        if start.startswith(GIT_LFS):
            raise ValueError(f"chunk {key} is a git-lfs pointer; run `git lfs pull`")
        stated = int.from_bytes(start[_BLOSC_SIZE], "little")
        if f"{group}/{array}" in self.blosc and stated != len(value):
            raise ValueError(
                f"chunk {key} has {len(value)} bytes, expected {stated} by its Blosc header"
            )
        return value


class ReplayBufferFile:
    """A replay buffer: a folder, or a `.zip` of what is in the folder."""

    def __init__(self, root: Path, *, allow_outside: bool) -> None:
        """Open the group in a folder or a `.zip`.

        Raises:
            DatasetError: there is no such group, or one of Zarr format 3.
        """
        self._root, self._allow_outside = root, allow_outside
        self._arrays: dict[str, Any] = {}
        if (root / "zarr.json").is_file():
            raise DatasetError(
                f"{root}: expected Zarr format 2, as Diffusion Policy writes it, found format 3; "
                "copy it with zarr_format=2"
            )
        try:
            self._store = _WholeChunks(
                zarr.storage.LocalStore(root, read_only=True)
                if root.is_dir()
                else zarr.storage.ZipStore(root, mode="r")
            )
            self._group = zarr.open_group(
                self._store,
                mode="r",
                zarr_format=2,
                use_consolidated=False,  # a copy of the headers, which may be an older one
            )
        except DAMAGE as error:
            found = why_unreadable(root, error, "correct the path, or copy or download it again")
            if root.is_dir():
                found = f"found none ({one_line(error)}); correct the path"
            raise DatasetError(
                f"{root}: expected a Zarr v2 replay buffer with .zgroup, data/ and {ENDS_KEY} at "
                f"its top, {found}"
            ) from error
        self.keys = array_keys(root)

    def array(self, key: str) -> Any:
        """Open one `zarr.Array` by its header; nothing is decoded.

        Raises:
            DatasetError: there is no such array, its header does not read, its codec is not
                installed, or it is stored outside the root.
        """
        if key in self._arrays:
            return self._arrays[key]
        if key not in self.keys:
            raise DatasetError(
                f"{self._root}: expected an array {key}, found {', '.join(self.keys) or 'none'}; "
                "correct the key"
            )
        if self._root.is_dir() and not self._allow_outside:
            for relative in (key, f"{key}/.zarray"):
                resolve_inside(self._root, relative, allow_outside=False)
        try:
            array: Any = self._group[key]
            codec = getattr(array.metadata.compressor, "codec_id", None)
        except DAMAGE as error:
            text = one_line(error)
            advice = "copy the array again"
            if "codec not available" in text:
                advice = (
                    "install the package of this codec (imagecodecs and imagecodecs-numcodecs for "
                    "imagecodecs_*), or write the array again with Blosc"
                )
            path = self._root / key / ".zarray" if self._root.is_dir() else self._root
            raise DatasetError(
                f"{self._root}: {key}/.zarray: expected the header of a Zarr v2 array, "
                f"{why_unreadable(path, text, advice)}"
            ) from error
        if codec == "blosc":
            self._store.blosc.add(key)
        self._arrays[key] = array
        return array

    def require_chunks(self, key: str, rows: Iterable[tuple[int, int]]) -> None:
        """Refuse an array that lacks a chunk of the given ranges [start, stop) of rows.

        Raises:
            DatasetError: a chunk is missing, or stored outside the root.
        """
        array, stored = self.array(key), self._chunk_names(key)
        per_chunk = array.chunks[0]
        needed = {
            chunk
            for start, stop in rows
            for chunk in range(start // per_chunk, -(-stop // per_chunk))
        }
        others = zip(array.shape[1:], array.chunks[1:], strict=True)
        axes = [sorted(needed), *(range(-(-length // chunk)) for length, chunk in others)]
        for index in itertools.product(*axes):
            name = array.metadata.dimension_separator.join(map(str, index))
            if name not in stored:
                raise DatasetError(
                    f"{self._root}: {key}: expected all chunks, found no chunk {name}, which Zarr "
                    "would read as zeros; copy the data again, or write it with "
                    f"write_empty_chunks=True if it is all zeros, or {LEAVE_OUT}"
                )

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def _chunk_names(self, key: str) -> set[str]:
        """Return the names of all files of an array."""
        if not self._root.is_dir():
            prefix = f"{key}/"
            return {
                name.removeprefix(prefix)
                for name in _zip_names(self._root)
                if name.startswith(prefix)
            }
        top = self._root / key
        names = set()
        for folder, folders, files in os.walk(top, followlinks=True):
            for name in (*folders, *files):
                path = Path(folder, name)
                if not self._allow_outside and path.is_symlink():
                    relative = str(path.relative_to(self._root))
                    resolve_inside(self._root, relative, allow_outside=False)
                names.add(path.relative_to(top).as_posix())
        return names


def array_keys(root: Path) -> tuple[str, ...]:
    """Return the keys of the arrays of a replay buffer, sorted: `data/action`, `data/img`."""
    if root.is_dir():
        found = [path.relative_to(root).parent.as_posix() for path in root.glob("*/*/.zarray")]
    else:
        found = [
            name.removesuffix("/.zarray")
            for name in _zip_names(root)
            if name.count("/") == 2 and name.endswith("/.zarray")
        ]
    return tuple(sorted(key for key in found if key.startswith("data/") or key == ENDS_KEY))


def _zip_names(root: Path) -> list[str]:
    with zipfile.ZipFile(root) as archive:
        return archive.namelist()
