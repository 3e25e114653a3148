"""Rows of a store's arrays, read from its files by position, for the batches of training.

An uncompressed array needs no decoding: a chunk is the raw rows and four bytes of checksum, and a
shard is 64 such chunks with an index at its end. So a row is one read at a known offset, memory
holds only the requested rows, and rows that were read before come from the system's page cache.
`announce` starts reading without waiting, so that a disk reads a whole batch at once. What fits
into the memory of a GPU is read once, into `DeviceRows`. Features in object storage, or compressed,
are copied to local files of raw rows first.

Values are addressed by `row * num_slots + slot`, so that one slot of a row can be read without the
others. A file must not change after it was opened.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float16, Int64
from torch import Tensor
from tqdm import tqdm

from pipeline.errors import ConfigError, StoreError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.layout import unit_arrays
from pipeline.features.store.units import CHUNK_ROWS, PASSING_ROWS, cut
from pipeline.storage.local import sync_file, user_cache
from pipeline.storage.location import on_disk
from pipeline.storage.locks import sole_writer

INDEX_ENTRY: Final = 2  # uint64 of a chunk in a shard's index: offset and bytes
CHECKSUM_BYTES: Final = 4  # a crc32c, after a chunk and after an index
NAME_DIGITS: Final = 32  # of a store's digest, in the name of a local copy


class _Slice(NamedTuple):
    """Neighboring values of one file."""

    start: int
    """In the result, as `stop`."""
    stop: int
    file: int
    offset: int
    """Bytes."""


class StoredRows:
    """One array of one or more stores, whose rows follow one another."""

    def __init__(self, stores: Sequence[FeatureStore], name: str, cache: Path | None = None):
        """Open the files, after copying those of stores that need a local copy.

        Args:
            stores: one or more complete ones, of the same slots and features.
            name: of the array, a key of `unit_arrays`.
            cache: for copies of remote or compressed stores; None: in the user's cache.

        Raises:
            StoreError: a file is absent or damaged.
            ConfigError: a store needs a copy, and there is too little space.
        """
        dtype, axes = unit_arrays(stores[0].attributes)[name]
        self.num_slots = stores[0].attributes.num_slots
        self.value = np.dtype((dtype, axes))
        """Type and shape of one."""
        self._paths: list[Path] = []
        starts, files, offsets, first_row = [], [], [], 0
        for store in stores:
            paths, rows, numbers, begins = _chunks(store, name, self.value.itemsize, cache)
            starts.append((first_row + rows) * self.num_slots)
            files.append(len(self._paths) + numbers)
            offsets.append(begins)
            self._paths += paths
            first_row += store.num_rows
        self._starts, self._files, self._offsets = map(np.concatenate, (starts, files, offsets))
        """First value, file and offset of every chunk."""
        self.num_values = first_row * self.num_slots
        self._stamps = []
        for path in self._paths:
            with _opened(path) as descriptor:
                self._stamps.append(_stamp(descriptor))

    @property
    def nbytes(self) -> int:
        """Size of all values."""
        return self.num_values * self.value.itemsize

    def announce(self, addresses: Int64[Tensor, "*b"]) -> None:
        """Have the system read values into its page cache, without waiting."""
        if sys.platform != "linux":
            return
        for own in self._slices(addresses):
            size = (own.stop - own.start) * self.value.itemsize
            with _opened(self._paths[own.file]) as descriptor:
                os.posix_fadvise(descriptor, own.offset, size, os.POSIX_FADV_WILLNEED)

    def read(self, addresses: Int64[Tensor, "*b"]) -> Float16[Tensor, "..."]:
        """Read values, as `[*addresses, *value]` (StoreError: a file changed or does not read)."""
        values = np.empty(addresses.numel(), self.value)
        content = memoryview(values.reshape(-1).view(np.uint8).data)
        for own in self._slices(addresses):
            size = self.value.itemsize
            self._read(own, content[own.start * size : own.stop * size])
        return torch.from_numpy(values).view(*addresses.shape, *values.shape[1:])

    def _read(self, own: _Slice, into: memoryview) -> None:
        path = self._paths[own.file]
        with _opened(path) as descriptor:
            is_same = _stamp(descriptor) == self._stamps[own.file]
            size = os.preadv(descriptor, [into], own.offset)
        if not is_same or size != len(into):
            raise StoreError(
                f"{path}: the store was replaced or changed while it was read; "
                f"run the same command again"
            )

    def _slices(self, addresses: Int64[Tensor, "*b"]) -> Iterator[_Slice]:
        """Cut values into runs that are consecutive in one chunk."""
        flat = addresses.reshape(-1).numpy()
        chunks = np.searchsorted(self._starts, flat, side="right") - 1
        is_cut = (np.diff(flat) != 1) | (np.diff(chunks) != 0)
        first = np.concatenate([[0], np.flatnonzero(is_cut) + 1])
        stops = np.append(first[1:], len(flat))
        chunks = chunks[first]
        within = (flat[first] - self._starts[chunks]) * self.value.itemsize
        columns = (first, stops, self._files[chunks], self._offsets[chunks] + within)
        return map(_Slice, *(column.tolist() for column in columns))


class DeviceRows:
    """All values of a `StoredRows`, in the memory of a device."""

    def __init__(self, stored: StoredRows, device: torch.device):
        """Read them (StoreError: a file changed or does not read)."""
        shape = (stored.num_values, *stored.value.shape)
        self._values = torch.empty(shape, dtype=torch.float16, device=device)
        for part in cut(0, stored.num_values, PASSING_ROWS * stored.num_slots):
            self._values[part] = stored.read(torch.arange(part.start, part.stop))

    def announce(self, addresses: Int64[Tensor, "*b"]) -> None:
        """Do nothing: they are read."""

    def read(self, addresses: Int64[Tensor, "*b"]) -> Float16[Tensor, "..."]:
        """Return values on the device, as `[*addresses, *value]`."""
        return self._values[addresses.to(self._values.device, non_blocking=True)]


Numbers = Int64[np.ndarray, " c"]


def _chunks(
    store: FeatureStore, name: str, value_bytes: int, cache: Path | None
) -> tuple[list[Path], Numbers, Numbers, Numbers]:
    """Return a store's files, and the first row, file and offset of every chunk in them."""
    files = np.arange(store.num_units)
    whole_files = files * store.attributes.rows_per_unit, files, np.zeros_like(files)
    folder = on_disk(store.path)
    if folder is None or store.attributes.codec != "none":
        cache = cache or user_cache("features")
        value = store.attributes.num_slots * value_bytes
        return _copy_units(store, name, cache, row_bytes=value), *whole_files
    trailing = "/0" * (1 + len(unit_arrays(store.attributes)[name][1]))
    paths = [folder / f"{name}/c/{unit}{trailing}" for unit in range(store.num_units)]
    if store.attributes.rows_per_unit == CHUNK_ROWS:
        return paths, *whole_files
    starts = np.arange(-(-store.num_rows // CHUNK_ROWS)) * CHUNK_ROWS
    num_chunks = store.attributes.rows_per_unit // CHUNK_ROWS
    chunk_bytes = CHUNK_ROWS * store.attributes.num_slots * value_bytes + CHECKSUM_BYTES
    offsets = [
        _shard_offsets(path, num_chunks, -(-store.num_unit_rows(unit) // CHUNK_ROWS), chunk_bytes)
        for unit, path in enumerate(paths)
    ]
    return paths, starts, starts // store.attributes.rows_per_unit, np.concatenate(offsets)


def _shard_offsets(path: Path, num_chunks: int, used: int, chunk_bytes: int) -> Numbers:
    """Read the offsets of a shard's `used` chunks; hashes of rows find a wrong one."""
    index_bytes = num_chunks * INDEX_ENTRY * 8
    with _opened(path) as descriptor:
        begin = os.fstat(descriptor).st_size - index_bytes - CHECKSUM_BYTES
        held = os.pread(descriptor, index_bytes, begin)
    index = np.frombuffer(held, "<u8").reshape(num_chunks, INDEX_ENTRY)[:used]
    if (index[:, 1] != chunk_bytes).any():
        raise StoreError(
            f"{path}: damaged: expected chunks of {chunk_bytes} bytes in its index, found others; "
            "run vla-embed again"
        )
    return index[:, 0].astype(np.int64)


def _copy_units(store: FeatureStore, name: str, cache: Path, *, row_bytes: int) -> list[Path]:
    """Return one file of raw rows per unit; copy the missing ones.

    A file is checked against the unit's commit record and gets its name when it is whole, so that
    an interrupted copy is resumed. The folder is named by the digest of the store's content:
    another store never reads it, and it can be removed when no training reads it.
    """
    folder = cache / store.digest()[:NAME_DIGITS] / name
    paths = [folder / f"{unit:06d}" for unit in range(store.num_units)]
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f"{folder.name}.lock")
    with sole_writer(folder, StoreError, lock=lock, wait=True):
        sizes = [store.num_unit_rows(unit) * row_bytes for unit in range(store.num_units)]
        held = [path.stat().st_size if path.exists() else -1 for path in paths]
        missing = [unit for unit, size in enumerate(sizes) if held[unit] != size]
        needed = sum(sizes[unit] for unit in missing)
        free = shutil.disk_usage(cache).free
        if needed > free:
            raise ConfigError(
                f"{store.path}: a local copy of {name} needs {needed / 1e9:,.1f} GB more, but the "
                f"disk of {cache} has {free / 1e9:,.1f} GB left; use another data.cache, or "
                "delete old copies in it"
            )
        for unit in tqdm(missing, desc="copy", unit="unit", disable=None if missing else True):
            _copy_unit(store, name, unit, paths[unit])
        sync_file(folder)
    return paths


def _copy_unit(store: FeatureStore, name: str, unit: int, path: Path) -> None:
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:

        def written() -> Iterator[np.ndarray]:
            for rows in store.read_slices(unit, name):
                file.write(np.ascontiguousarray(rows).data)
                yield rows

        store.check_rows(unit, name, written())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Yield the descriptor of a file to read (StoreError: it does not read)."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be read ({error.strerror}); check the disk, or run vla-embed again"
        ) from error


def _stamp(descriptor: int) -> tuple[int, int, int, int]:
    """Return a value that changes when the file is replaced or written."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
