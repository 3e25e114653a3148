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

HDF5_ERRORS: Final = (OSError, KeyError, RuntimeError, ValueError, TypeError)
"""What h5py raises for damaged files; our DatasetError is a ValueError."""


def hdf5_file(path: Location) -> h5py.File:
    """Open a file for reading; an object in a bucket is fetched in ranges as it is read.

    Raises:
        OSError: there is no file, or it is damaged or not HDF5.
        ObjectStorageError: object storage refuses, or does not answer; also during later reads.
    """
    file = on_disk(path)
    if file is None:
        return h5py.File(open_folder(path.parent).open(path.name), "r")
    return h5py.File(file, "r")


@contextmanager
def open_hdf5(path: Location) -> Iterator[h5py.File]:
    """Open a file for reading; errors of h5py while it is open become DatasetErrors of the file.

    ObjectStorageError: object storage refuses, or does not answer.
    """
    try:
        with hdf5_file(path) as file:
            yield file
    except DatasetError:
        raise
    except HDF5_ERRORS as error:
        why = why_unreadable(path, error, f"copy it again, or {LEAVE_OUT}")
        raise DatasetError(f"{path}: expected an HDF5 file, {why}") from error


def find_object(group: h5py.Group, key: str) -> h5py.Group | h5py.Dataset | None:
    """Find a group or dataset, by links too; None if there is none (DatasetError: outside)."""
    try:
        node = group[key]
    except (KeyError, RuntimeError):  # a link to nothing, or a circle of links
        return None
    if node.file.filename != group.file.filename:
        raise _outside(group, key)
    return node if isinstance(node, h5py.Group | h5py.Dataset) else None


def find_dataset(group: h5py.Group, key: str) -> h5py.Dataset | None:
    """Find a dataset; None if there is none (DatasetError: its values are in another file)."""
    node = find_object(group, key)
    if not isinstance(node, h5py.Dataset):
        return None
    if node.is_virtual or node.external:  # a missing source file reads as zeros
        raise _outside(group, key)
    return node


def attribute(of: h5py.Group, name: str) -> Any:
    """Return an attribute out of an array of one element, bytes as text; None if there is none."""
    value = of.attrs.get(name)
    if isinstance(value, np.ndarray | np.generic) and value.size == 1:
        value = value.item()
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def text_attribute(of: h5py.Group, name: str) -> str | None:
    """Return an attribute's text; None for others."""
    value = attribute(of, name)
    return value if isinstance(value, str) else None


def success_attribute(of: h5py.Group) -> bool | None:
    """Return the attribute `success`, stored as bool or as 0 and 1; None for others."""
    value = attribute(of, "success")
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def positive_number(value: object) -> float | None:
    """Return a rate from a file; None if it is not a finite number above 0."""
    if isinstance(value, int | float) and value is not True and 0 < value < math.inf:
        return float(value)
    return None


def require_written(dataset: h5py.Dataset, where: str) -> None:
    """Refuse a dataset of which a part was never written, and reads as zeros (DatasetError)."""
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
            f"{wanted} {unit}: it was cut off; copy it again if the original is complete, or "
            f"{LEAVE_OUT}"
        )


def _outside(group: h5py.Group, key: str) -> DatasetError:
    return DatasetError(
        f"{group.file.filename}: {key}: expected data inside the file, found a link to another "
        "file; copy the data into this file with h5repack or h5copy"
    )
