"""Local copies of features that cannot be read in place: in object storage, or compressed.

A unit's copy is the raw rows in one file, checked against the unit's commit record; it gets its
name when it is whole, so that an interrupted copy is resumed. The folder is named by the digest of
the store's content: another store never reads it, and it can be removed when no training reads it.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from tqdm import tqdm

from pipeline.errors import ConfigError, StoreError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.layout import unit_arrays
from pipeline.storage.local import sync_file
from pipeline.storage.locks import sole_writer

NAME_DIGITS: Final = 32  # of a digest, in a folder's name


def copy_units(store: FeatureStore, name: str, cache: Path) -> list[Path]:
    """Return one file of raw rows per unit; copy the missing ones.

    Raises:
        StoreError: a unit is damaged.
        ConfigError: the copies would fill the disk; nothing was copied.
    """
    folder = cache / store.digest()[:NAME_DIGITS] / name
    paths = [folder / f"{unit:06d}" for unit in range(store.num_units)]
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f"{folder.name}.lock")
    with sole_writer(folder, StoreError, lock=lock, wait=True):
        missing = [unit for unit, path in enumerate(paths) if not path.exists()]
        row_bytes = (
            store.attributes.num_slots * np.dtype(unit_arrays(store.attributes)[name]).itemsize
        )
        needed = sum(map(store.num_unit_rows, missing)) * row_bytes
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
