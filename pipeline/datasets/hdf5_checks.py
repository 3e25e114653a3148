"""What an HDF5 dataset must be before it is read: inside its own file, and written to the end.

Knows h5py; knows no manifest and no layout of episodes. Looks at headers only: nothing is read.
"""

import math
from pathlib import Path
from typing import Any

import h5py

from pipeline.errors import DatasetError


def find_dataset(file: h5py.File, key: str) -> h5py.Dataset | None:
    """Find a dataset whose numbers lie in this very file.

    A downloaded file must not be able to draw in others of this machine.

    Args:
        file: open for reading.
        key: names joined by single slashes.

    Returns:
        The dataset, or None where there is nothing or no dataset.

    Raises:
        DatasetError: the key leads to another file.
    """
    node: Any = file
    for part in key.strip("/").split("/"):
        name = part.encode()
        if not isinstance(node, h5py.Group) or not node.id.links.exists(name):
            return None
        if node.id.links.get_info(name).type == h5py.h5l.TYPE_EXTERNAL:
            raise _outside(file, key)
        try:
            node = node[part]
        except KeyError:  # a soft link to nothing
            return None
    if not isinstance(node, h5py.Dataset):
        return None
    if node.file.filename != file.filename or node.is_virtual or node.external:
        raise _outside(file, key)
    return node


def require_written(dataset: h5py.Dataset, key: str) -> None:
    """Refuse a dataset whose space was reserved and never filled: HDF5 reads the rest as zeros.

    Raises:
        DatasetError: some of the dataset is not in the file.
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
        path = Path(dataset.file.filename)
        raise DatasetError(
            f"{path}: {key}: expected {dataset.shape} written to the end, found {num_stored} of "
            f"{wanted} {unit}: the recording was cut off; record this episode again or remove "
            "the file"
        )


def _outside(file: h5py.File, key: str) -> DatasetError:
    return DatasetError(
        f"{Path(file.filename)}: {key}: expected data inside the file, found a link to another "
        "file; copy the data in with h5repack or h5copy"
    )
