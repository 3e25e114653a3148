"""Local copies of features that cannot be read in place: in object storage, or compressed.

A unit's copy is the raw rows in one file, checked against the unit's commit record; it gets its
name when it is whole, so that an interrupted copy is resumed. The folder is named by the digest of
the store's content: another store never reads it, and it can be removed when no training reads it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import ByteSize, TypeAdapter, ValidationError
from tqdm import tqdm

from pipeline.errors import ConfigError, StoreError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.layout import unit_arrays
from pipeline.storage.local import sync_file
from pipeline.storage.locks import sole_writer

LEAST_BYTES: Final = 10**6  # a smaller amount lacks its unit
NAME_DIGITS: Final = 32  # of a digest, in a folder's name


@dataclass(frozen=True)
class FeatureCache:
    """A folder of copies, which take at most `max_bytes` together."""

    folder: Path
    max_bytes: int

    def copied(self, store: FeatureStore, name: str) -> list[Path]:
        """Return one file of raw rows per unit; copy those that are missing, one process at a time.

        Raises:
            StoreError: a unit is damaged.
            ConfigError: the copies would take more than `max_bytes`; nothing was copied.
        """
        folder = self.folder / store.digest()[:NAME_DIGITS] / name
        paths = [folder / f"{unit:06d}" for unit in range(store.num_units)]
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f"{folder.name}.lock")
        with sole_writer(folder, StoreError, lock=lock, wait=True):
            missing = [unit for unit, path in enumerate(paths) if not path.exists()]
            self._require_room(store, name, missing)
            for unit in tqdm(missing, desc="copy", unit="unit", disable=None if missing else True):
                _copy_unit(store, name, unit, paths[unit])
            sync_file(folder)
        return paths

    def _require_room(self, store: FeatureStore, name: str, missing: list[int]) -> None:
        dtype, axes = unit_arrays(store.attributes)[name]
        row_bytes = store.attributes.num_slots * np.dtype((dtype, axes)).itemsize
        rows = [store.unit_rows(unit) for unit in missing]
        needed = sum(stop - start for start, stop in rows) * row_bytes
        held = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        if needed and held + needed > self.max_bytes:
            raise ConfigError(
                f"{store.path}: a local copy of {name} takes {needed / 1e9:,.1f} GB more, "
                f"{self.folder} holds {held / 1e9:,.1f} of {self.max_bytes / 1e9:,.1f} GB; raise "
                f"--cache-bytes, name another --cache-dir, or remove copies from it"
            )


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


def parse_bytes(text: str) -> int:
    """Return the bytes of an amount as in 8GB or 1.5TB (ConfigError: no amount of a MB or more)."""
    try:
        amount = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        amount = ByteSize(0)
    if amount < LEAST_BYTES:
        raise ConfigError(f"--cache-bytes {text}: want a number and its unit, as in 8GB or 500MB")
    return int(amount)
