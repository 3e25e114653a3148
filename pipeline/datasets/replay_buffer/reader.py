"""Episodes in the Zarr v2 replay buffer of Diffusion Policy, a folder or a `.zarr.zip`.

`data/<key>` contains the control steps of all episodes, one after another, `meta/episode_ends` the
row after each episode's last. Keys include the group: `data/img`, `data/action`. The files contain
no control frequency. Recordings of real robots with their frames in `videos/` are not read.

Zarr reads a missing chunk as its fill value, that is as black frames and zeros, without an error;
and Blosc reads memory behind the end of a chunk that was cut off. Both are refused here.
Source: real-stanford/diffusion_policy@5ba07ac6, diffusion_policy/common/replay_buffer.py;
Blosc/c-blosc, README_CHUNK_FORMAT.rst (`cbytes` at 12, 32 bits, little-endian).
"""

import itertools
import lzma
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
import zarr.storage
from jaxtyping import Float64, Int64, Shaped

from pipeline.datasets.arrays import (
    ArrayReader,
    PixelLayout,
    alpha_remarks,
    number_columns,
    pixel_layout,
    require_layout,
    require_numbers,
)
from pipeline.datasets.base import DatasetConfig, DatasetFacts, Episode, FormatSurvey
from pipeline.datasets.causes import GIT_LFS, why_unreadable
from pipeline.datasets.manifest.paths import resolve_inside
from pipeline.datasets.manifest.selection import LEAVE_OUT, wanted_numbers
from pipeline.errors import DatasetError
from policy.errors import one_line

ENDS_KEY: Final = "meta/episode_ends"
CLOCK_KEY: Final = "data/timestamp"  # seconds; recordings of real robots have it
_HEADER: Final = re.compile(rf"(data/[^/]+|{ENDS_KEY})/\.zarray")
_BLOSC_SIZE: Final = slice(12, 16)  # bytes of a Blosc chunk that contain its length
_DAMAGE: Final = (  # what zarr and its codecs raise for damaged bytes and headers
    *(RuntimeError, ValueError, TypeError, OSError, EOFError, OverflowError, KeyError),
    *(AttributeError, NotImplementedError, zlib.error, lzma.LZMAError, zipfile.BadZipFile),
    struct.error,
)


@dataclass(frozen=True)
class _Rows(Episode):
    """An episode, and its first row in the arrays."""

    first: int


class _WholeChunks(zarr.storage.WrapperStore[Any]):
    """A store in which a missing chunk, or a Blosc chunk that was cut off, is an error."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.blosc: set[str] = set()  # keys of arrays

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Return what is stored at a key (OSError, ValueError: a chunk is missing, or cut off)."""
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


class _Buffer:
    """The files and arrays of a replay buffer; closing is optional for folders."""

    def __init__(self, root: Path, *, allow_outside: bool) -> None:
        """Open a folder or a `.zip` (DatasetError: it is no group of Zarr format 2)."""
        self.root, self._allow_outside = root, allow_outside
        is_folder = root.is_dir()
        try:
            self.files = _file_names(root)
            self.store = _WholeChunks(
                zarr.storage.LocalStore(root, read_only=True)
                if is_folder
                else zarr.storage.ZipStore(root, mode="r")
            )
            self._group = zarr.open_group(
                self.store,
                mode="r",
                zarr_format=2,
                use_consolidated=False,  # a copy of the headers, which may be an older one
            )
        except _DAMAGE as error:
            found = why_unreadable(root, error, "correct the path, or copy or download it again")
            if is_folder and (root / "zarr.json").is_file():
                found = "found format 3; copy it with zarr_format=2"
            raise DatasetError(
                f"{root}: expected a Zarr v2 replay buffer with .zgroup, data/ and {ENDS_KEY} at "
                f"its top, {found}"
            ) from error
        self.keys = _array_keys(self.files)

    def array(self, key: str) -> Any:
        """Open one `zarr.Array` (DatasetError: it is missing or outside, or does not open)."""
        if key not in self.keys:
            raise DatasetError(
                f"{self.root}: expected an array {key}, found {', '.join(self.keys) or 'none'}; "
                "correct the key"
            )
        header = self.root
        if self.root.is_dir():
            header = resolve_inside(self.root, f"{key}/.zarray", allow_outside=self._allow_outside)
        try:
            array: Any = self._group[key]
            if getattr(array.metadata.compressor, "codec_id", None) == "blosc":
                self.store.blosc.add(key)
        except _DAMAGE as error:
            advice = (
                "copy the array again, or install its codec if that is not available (imagecodecs "
                "and imagecodecs-numcodecs for imagecodecs_*)"
            )
            raise DatasetError(
                f"{self.root}: {key}/.zarray: expected the header of a Zarr v2 array, "
                f"{why_unreadable(header, error, advice)}"
            ) from error
        return array

    def require_chunks(self, key: str, array: Any, episodes: Iterable[_Rows]) -> None:
        """Refuse an array that lacks a chunk of an episode (DatasetError)."""
        per_chunk = array.chunks[0]
        needed = {
            chunk
            for of in episodes
            for chunk in range(of.first // per_chunk, -(-(of.first + of.length) // per_chunk))
        }
        others = zip(array.shape[1:], array.chunks[1:], strict=True)
        axes = [sorted(needed), *(range(-(-length // chunk)) for length, chunk in others)]
        for index in itertools.product(*axes):
            name = array.metadata.encode_chunk_key(index)
            if f"{key}/{name}" not in self.files:
                raise DatasetError(
                    f"{self.root}: {key}: expected all chunks, found no chunk {name}, which Zarr "
                    "would read as zeros; copy the data again, or write it with "
                    f"write_empty_chunks=True if it is all zeros, or {LEAVE_OUT}"
                )
            if (self.root / key / name).is_symlink():
                allowed = self._allow_outside
                resolve_inside(self.root, f"{key}/{name}", allow_outside=allowed)


class DiffusionPolicyZarrReader(ArrayReader):
    """A replay buffer; an episode's number is its position."""

    damage = _DAMAGE
    _episodes: Sequence[_Rows]

    def __init__(self, config: DatasetConfig) -> None:
        """Open the arrays and check that all chunks of kept episodes are stored."""
        super().__init__(config)
        buffer = _Buffer(config.local_root, allow_outside=config.allow_outside)
        self._store = buffer.store
        try:
            ends = _read_ends(buffer)
            self._episodes = _episodes(config, buffer.root, ends)
            clock = [CLOCK_KEY] if CLOCK_KEY in buffer.keys else []
            numbers = dict.fromkeys((*config.number_keys, *clock))
            self._arrays = {key: buffer.array(key) for key in (*config.view_keys, *numbers)}
            self._layouts: dict[str, PixelLayout] = {}
            for key in config.view_keys:
                self._layouts[key] = require_layout(self._arrays[key], f"{buffer.root}: {key}")
            for key in numbers:
                require_numbers(self._arrays[key], f"{buffer.root}: {key}")
            self._require_rows(buffer.root, ends)
            for key, array in self._arrays.items():
                buffer.require_chunks(key, array, self._episodes)
        except BaseException:
            self.close()
            raise
        self.facts = DatasetFacts(remarks=alpha_remarks(self._layouts))

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        """Whether the names of the files are those of a replay buffer, readable or not."""
        try:
            if root.is_dir():
                has_header = any((root / name).is_file() for name in (".zgroup", "zarr.json"))
                return has_header and (root / ENDS_KEY).is_dir() and (root / "data").is_dir()
            if root.name.endswith(".zarr.zip"):
                return root.is_file()
            return root.suffix == ".zip" and ENDS_KEY in _array_keys(_file_names(root))
        except (OSError, zipfile.BadZipFile):
            return False

    @classmethod
    def survey(cls, root: Path) -> FormatSurvey:
        """List the arrays: those of color frames are views, the others numbers."""
        buffer = _Buffer(root, allow_outside=False)
        try:
            arrays = {key: buffer.array(key) for key in buffer.keys if key != ENDS_KEY}
        finally:
            buffer.store.close()
        layouts = {key: pixel_layout(array) for key, array in arrays.items()}
        views = {key: layout.size for key, layout in layouts.items() if layout}
        return FormatSurvey(fps=None, views={**views}, numbers=number_columns(arrays))

    def timestamp(self, episode: int) -> Float64[np.ndarray, " t"] | None:
        if CLOCK_KEY not in self._arrays:
            return None
        seconds = np.asarray(self.numbers(episode, CLOCK_KEY)[:, 0], np.float64)
        return np.asarray(seconds - seconds[0])

    def close(self) -> None:
        self._store.close()

    def _layout(self, episode: int, view_key: str) -> PixelLayout:
        return self._layouts[view_key]

    def _read(self, episode: int, key: str, start: int, stop: int) -> Shaped[np.ndarray, "t ..."]:
        first = self._episodes[episode].first
        return np.asarray(self._arrays[key][first + start : first + stop])

    def _require_rows(self, root: Path, ends: Int64[np.ndarray, " e"]) -> None:
        """Refuse arrays of different lengths: any rows of them may be missing."""
        last = int(ends[self._episodes[-1].number])
        is_last = self._episodes[-1].number == len(ends) - 1  # else the last end may be wrong
        expected = last if is_last else next(iter(self._arrays.values())).shape[0]
        for key, array in self._arrays.items():
            if array.shape[0] != expected or expected < last:
                raise DatasetError(
                    f"{root}: {key}: expected {max(expected, last)} rows, by {ENDS_KEY} or the "
                    f"other arrays, found {array.shape[0]}: an array was cut off or edited, or an "
                    "episode is incomplete; cut all arrays to the same length, or copy the data "
                    "again"
                )


def _file_names(root: Path) -> frozenset[str]:
    if not root.is_dir():
        with zipfile.ZipFile(root) as archive:
            return frozenset(archive.namelist())
    return frozenset(
        Path(folder, name).relative_to(root).as_posix()
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
    )


def _array_keys(files: Iterable[str]) -> list[str]:
    """Return the keys of the arrays of a replay buffer: `data/action`, `data/img`."""
    return sorted(header[1] for name in files if (header := _HEADER.fullmatch(name)))


def _read_ends(buffer: _Buffer) -> Int64[np.ndarray, " e"]:
    array = buffer.array(ENDS_KEY)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
        raise DatasetError(
            f"{buffer.root}: {ENDS_KEY}: expected whole numbers on one axis, found {array.dtype} "
            f"{array.shape}; write the row after each episode's last"
        )
    try:
        return np.asarray(array[:]).astype(np.int64)
    except _DAMAGE as error:
        raise DatasetError(
            f"{buffer.root}: {ENDS_KEY}: expected a readable array, found {one_line(error)}; copy "
            "the data again"
        ) from error


def _episodes(config: DatasetConfig, root: Path, ends: Int64[np.ndarray, " e"]) -> list[_Rows]:
    """Locate the kept episodes; refuse those without rows, or that begin before others end."""
    found, starts = [], np.concatenate([[0], ends[:-1]])
    for number in sorted(wanted_numbers(config, range(len(ends)))):
        start, end = int(starts[number]), int(ends[number])
        if not max(0, ends[:number].max(initial=0)) <= start < end:
            raise DatasetError(
                f"{root}: {ENDS_KEY}: expected ascending ends, each episode with at least one row, "
                f"found rows [{start}, {end}) for episode {number}; correct the ends, or "
                f"{LEAVE_OUT}"
            )
        found.append(_Rows(number, root, f"{root}: episode {number}", end - start, start))
    return found
