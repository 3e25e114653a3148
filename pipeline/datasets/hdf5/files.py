"""What an HDF5 file must be before it is read: inside itself, of the right kind, and written whole.

Looks at headers only: nothing is read.
Source: HDF5 file format specification 3.0 (kinds of links, filters of a dataset).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import h5py
import numpy as np
from jaxtyping import Float, Shaped

from pipeline.datasets.causes import why_unreadable
from pipeline.datasets.limits import MAX_CHUNK_BYTES, MAX_COLUMNS, MAX_NUMBERS, MAX_PIXELS
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.datasets.pixels import PixelLayout, kind_of_array, pixel_layout
from pipeline.errors import DatasetError
from pipeline.storage.location import Location, on_disk
from pipeline.storage.open import open_folder

MAX_LINKS: Final = 16  # links to links, before they are taken for a circle
# What h5py raises for damaged files, by the place of the damage.
DAMAGED: Final = f"copy it again from where it was recorded, or {LEAVE_OUT}"
HDF5_ERRORS: Final = (OSError, KeyError, RuntimeError, ValueError, TypeError)


def hdf5_file(path: Location) -> h5py.File:
    """Open a file for reading; of an object, what is read of it is fetched, in ranges.

    What object storage refuses passes through HDF5 and h5py unchanged, as `ObjectStorageError`:
    an outage is never taken for a damaged file.

    Raises:
        FileNotFoundError: there is no file.
        OSError: it is damaged or no HDF5.
        ObjectStorageError: object storage refuses, or does not answer; also while it is read.
    """
    file = on_disk(path)
    if file is None:
        return h5py.File(open_folder(path.parent).open(path.name), "r")
    return h5py.File(file, "r")


@contextmanager
def open_hdf5(path: Location) -> Iterator[h5py.File]:
    """Open a file for reading; what is damaged while it is open is reported with its name.

    Raises:
        DatasetError: there is no file, or it is damaged or no HDF5.
        ObjectStorageError: object storage refuses, or does not answer.
    """
    try:
        with hdf5_file(path) as file:
            yield file
    except DatasetError:  # which is a ValueError
        raise
    except HDF5_ERRORS as error:
        raise DatasetError(
            f"{path}: expected an HDF5 file, {why_unreadable(path, error, DAMAGED)}"
        ) from error


def find_object(file: h5py.File, key: str) -> h5py.Group | h5py.Dataset | None:
    """Find a group or dataset of this very file; links within it are followed.

    A downloaded file must not be able to draw in others of this machine: they are not even opened.

    Args:
        file: open for reading.
        key: names joined by single slashes; empty for the file's root.

    Returns:
        The object, or None where there is nothing, a link to nothing or a circle of links.

    Raises:
        DatasetError: the key leads to another file.
    """
    node: Any = file
    parts = key.strip("/").encode().split(b"/") if key.strip("/") else []
    num_links = 0
    while parts:
        name = parts.pop(0)
        if name in (b"", b"."):
            continue
        if b"\0" in name or not isinstance(node, h5py.Group) or not node.id.links.exists(name):
            return None
        kind = node.id.links.get_info(name).type
        if kind == h5py.h5l.TYPE_SOFT:
            num_links += 1
            if num_links > MAX_LINKS:
                return None
            target = node.id.links.get_val(name)
            node = file if target.startswith(b"/") else node
            parts = [*target.split(b"/"), *parts]
        elif kind == h5py.h5l.TYPE_HARD:
            node = node[name]
        else:
            raise _outside(file, key)
    return node if isinstance(node, h5py.Group | h5py.Dataset) else None


def find_dataset(file: h5py.File, key: str) -> h5py.Dataset | None:
    """Find a dataset whose numbers lie in this very file; None where there is no dataset.

    Raises:
        DatasetError: the key or the dataset leads to another file.
    """
    node = find_object(file, key)
    if not isinstance(node, h5py.Dataset):
        return None
    if node.is_virtual or node.external:
        raise _outside(file, key)
    return node


def is_compressed(dataset: h5py.Dataset, *, in_rows: bool) -> bool:
    """Whether a dataset has the shape and type of compressed frames, one per step.

    Args:
        dataset: found by `find_dataset`.
        in_rows: whether rows of uint8, padded to one length, are compressed frames; byte strings
            and rows of varying length are in any case.
    """
    if dataset.ndim == 1:
        kind = h5py.check_vlen_dtype(dataset.dtype)
        return kind == np.uint8 or h5py.check_string_dtype(dataset.dtype) is not None
    return bool(in_rows and dataset.ndim == 2 and dataset.dtype == np.uint8)


def is_numbers(dataset: h5py.Dataset) -> bool:
    """Whether a dataset has the shape and type of numbers: (t, d) or (t,), of any real type."""
    return dataset.ndim in (1, 2) and dataset.dtype.kind in "fiub"


def as_floating(values: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return numbers as float32 where that holds their type, as float64 otherwise; 0 and 1 of bool.

    Args:
        values: of any real type, any order of bytes.
    """
    is_small = values.dtype.kind == "f" and values.dtype.itemsize <= 4
    return values.astype(np.float32 if is_small else np.float64)


def single_value(value: Any) -> Any:
    """Return what an attribute says, out of the array of one element that some writers wrap it in.

    Args:
        value: as h5py returns an attribute, or None.
    """
    is_wrapped = isinstance(value, np.ndarray | np.generic) and value.size == 1
    return value.item() if is_wrapped else value


def frame_layout(dataset: h5py.Dataset, where: str) -> PixelLayout | None:
    """Tell how a dataset holds frames; None where they are compressed files, JPEG or PNG.

    Args:
        dataset: found by `find_dataset`.
        where: file, episode and key, for messages.

    Raises:
        DatasetError: it holds no color frames, or they are too large.
    """
    layout = pixel_layout(dataset.shape, dataset.dtype)
    if layout is None and not is_compressed(dataset, in_rows=True):
        raise DatasetError(
            f"{where}: expected RGB frames (steps, height, width, 3) of uint8 or of floating "
            "point, or JPEG or PNG files as (steps, bytes) or byte strings, found "
            f"{kind_of_array(dataset.shape, dataset.dtype)}; name a color camera, or convert the "
            "frames"
        )
    # Pixels, or bytes of the longest file; byte strings and rows of varying length have one shape.
    size = math.prod(layout.size if layout else dataset.shape[1:])
    if not 1 <= size <= MAX_PIXELS:
        raise DatasetError(
            f"{where}: expected frames of 1 to {MAX_PIXELS} pixels or bytes, found "
            f"{dataset.dtype} {dataset.shape}; name another camera, or convert the frames"
        )
    return layout


def require_numbers(dataset: h5py.Dataset, where: str) -> None:
    """Refuse a dataset that cannot be columns of state or action.

    Raises:
        DatasetError: it has another type or shape.
    """
    if not is_numbers(dataset):
        raise DatasetError(
            f"{where}: expected numbers of shape (steps, width) or (steps,), found "
            f"{dataset.dtype} {dataset.shape}; correct `key` in the manifest"
        )
    if dataset.ndim == 2 and not 1 <= dataset.shape[1] <= MAX_COLUMNS:
        raise DatasetError(
            f"{where}: expected (steps, width) with a width of at least 1 and at most "
            f"{MAX_COLUMNS}, found {dataset.shape}; correct `key` in the manifest, or "
            f"{LEAVE_OUT}"
        )


def require_readable(dataset: h5py.Dataset, where: str, *, are_frames: bool = False) -> None:
    """Refuse a dataset that would not read, or of which HDF5 would make up a part.

    Space that was reserved and never filled reads as zeros.

    Args:
        dataset: found by `find_dataset`.
        where: file, episode and key, for messages.
        are_frames: whether it is read a few rows at a time, and may be of any length.

    Raises:
        DatasetError: some of the dataset is not in the file, its numbers or one of its chunks
            would fill the memory, or it needs a filter that is not installed.
    """
    if dataset.chunks is None:
        # Not `dataset.nbytes`, which overflows for lengths that nobody can have written.
        wanted, unit = math.prod(dataset.shape) * dataset.dtype.itemsize, "bytes"
        num_stored = dataset.id.get_storage_size()
    else:
        axes = zip(dataset.shape, dataset.chunks, strict=True)
        wanted, unit = math.prod(-(-length // chunk) for length, chunk in axes), "chunks"
        num_stored = dataset.id.get_num_chunks()
    if num_stored < wanted:
        raise DatasetError(
            f"{where}: expected {dataset.shape} written to the end, found {num_stored} of "
            f"{wanted} {unit}: the recording was cut off; copy it again if its original is "
            f"whole, or {LEAVE_OUT}"
        )
    if not are_frames and math.prod(dataset.shape) > MAX_NUMBERS:
        raise DatasetError(
            f"{where}: expected at most {MAX_NUMBERS} numbers, found {dataset.shape}; split the "
            f"episode, correct `key` in the manifest, or {LEAVE_OUT}"
        )
    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(place)[0] for place in range(plan.get_nfilters())]
    chunk_bytes = math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize
    if filters and chunk_bytes > MAX_CHUNK_BYTES:
        raise DatasetError(
            f"{where}: expected chunks of at most {MAX_CHUNK_BYTES} bytes, each of which is "
            f"unpacked whole, found {chunk_bytes} ({dataset.chunks}); repack the file with "
            "`h5repack` in smaller chunks"
        )
    for code in filters:
        if not h5py.h5z.filter_avail(code):
            raise DatasetError(
                f"{where}: expected a compression that HDF5 knows itself, found filter {code}, "
                "which is not installed; repack the file with `h5repack -f GZIP=1`"
            )


def _outside(file: h5py.File, key: str) -> DatasetError:
    return DatasetError(
        f"{file.filename}: {key}: expected data inside the file, found a link to another "
        "file; copy the data in with h5repack or h5copy"
    )
