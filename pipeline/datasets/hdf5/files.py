"""HDF5 files opened, and their objects found and checked by their headers.

Source: HDF5 file format specification 3.0 (kinds of links, storage of a dataset).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import h5py
import numpy as np

from pipeline.datasets.causes import why_unreadable
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.errors import DatasetError
from pipeline.storage.location import Location, on_disk
from pipeline.storage.open import open_folder

DAMAGED: Final = f"copy it again from where it was recorded, or {LEAVE_OUT}"
HDF5_ERRORS: Final = (OSError, KeyError, RuntimeError, ValueError, TypeError)
"""What h5py raises for damaged files; our DatasetError is a ValueError."""


def hdf5_file(path: Location) -> h5py.File:
    """Open a file for reading; an object in a bucket is fetched in ranges as it is read.

    Raises:
        FileNotFoundError: there is no file.
        OSError: it is damaged or not HDF5.
        ObjectStorageError: object storage refuses, or does not answer; also during later reads.
    """
    file = on_disk(path)
    if file is None:
        return h5py.File(open_folder(path.parent).open(path.name), "r")
    return h5py.File(file, "r")


@contextmanager
def open_hdf5(path: Location) -> Iterator[h5py.File]:
    """Open a file for reading; errors of h5py while it is open name the file.

    Raises:
        DatasetError: there is no file, or it is damaged or not HDF5.
        ObjectStorageError: object storage refuses, or does not answer.
    """
    try:
        with hdf5_file(path) as file:
            yield file
    except DatasetError:
        raise
    except HDF5_ERRORS as error:
        raise DatasetError(
            f"{path}: expected an HDF5 file, {why_unreadable(path, error, DAMAGED)}"
        ) from error


def find_object(file: h5py.File, key: str) -> h5py.Group | h5py.Dataset | None:
    """Find a group or dataset of this file; None if there is none. Links in the file are followed.

    `key` is names joined by single slashes; empty for the file's root.

    Raises:
        DatasetError: the key is a link to another file.
    """
    try:
        node = file[key or "/"]
    except (KeyError, RuntimeError):  # a link to nothing, or a circle of links
        return None
    if node.file.filename != file.filename:
        raise _outside(file, key)
    return node if isinstance(node, h5py.Group | h5py.Dataset) else None


def find_dataset(file: h5py.File, key: str) -> h5py.Dataset | None:
    """Find a dataset whose values are stored in this file; None if there is no dataset.

    Raises:
        DatasetError: the key or the values are in another file.
    """
    node = find_object(file, key)
    if not isinstance(node, h5py.Dataset):
        return None
    if node.is_virtual or node.external:  # a missing source file reads as zeros
        raise _outside(file, key)
    return node


def is_compressed(dataset: h5py.Dataset, *, in_rows: bool) -> bool:
    """Whether a dataset has the shape and type of JPEG or PNG files, one per step.

    Args:
        dataset: found by `find_dataset`.
        in_rows: whether padded rows of uint8 count too, not only byte strings and rows of varying
            length.
    """
    if dataset.ndim == 1:
        kind = h5py.check_vlen_dtype(dataset.dtype)
        return kind == np.uint8 or h5py.check_string_dtype(dataset.dtype) is not None
    return bool(in_rows and dataset.ndim == 2 and dataset.dtype == np.uint8 and dataset.shape[1])


def is_numbers(dataset: h5py.Dataset) -> bool:
    """Whether a dataset has the shape and type of numbers: (t, d) or (t,), of any real type."""
    has_columns = dataset.ndim == 1 or (dataset.ndim == 2 and dataset.shape[1] > 0)
    return has_columns and dataset.dtype.kind in "fiub"


def single_value(value: Any) -> Any:
    """Return the value of an attribute, unwrapped if it is an array of one element."""
    is_wrapped = isinstance(value, np.ndarray | np.generic) and value.size == 1
    return value.item() if is_wrapped else value


def require_written(dataset: h5py.Dataset, where: str) -> None:
    """Refuse a dataset of which a part was reserved and never written: it reads as zeros.

    Raises:
        DatasetError: some of the dataset is not in the file; `where` names the dataset.
    """
    if dataset.chunks is None:
        # Not `dataset.nbytes`, which overflows for lengths beyond memory.
        wanted, unit = math.prod(dataset.shape) * dataset.dtype.itemsize, "bytes"
        num_stored = dataset.id.get_storage_size()
    else:
        axes = zip(dataset.shape, dataset.chunks, strict=True)
        wanted, unit = math.prod(-(-length // chunk) for length, chunk in axes), "chunks"
        num_stored = dataset.id.get_num_chunks()
    if num_stored < wanted:
        raise DatasetError(
            f"{where}: expected {dataset.shape} written to the end, found {num_stored} of "
            f"{wanted} {unit}: the recording was cut off; copy it again if the original is "
            f"complete, or {LEAVE_OUT}"
        )


def _outside(file: h5py.File, key: str) -> DatasetError:
    return DatasetError(
        f"{file.filename}: {key}: expected data inside the file, found a link to another "
        "file; copy the data into this file with h5repack or h5copy"
    )
