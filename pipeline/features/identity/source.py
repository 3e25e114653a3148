"""Where a store's frames came from: the manifest file, and a stamp of the files it leads to.

The note saves comparing every frame where no file was touched, and names the dataset for
`vla-data verify`. No hash of the arrays covers it.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.datasets.manifest.model import load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import StoreError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.records import SOURCE_NOTE, read_sealed, write_sealed
from pipeline.storage.location import Location
from pipeline.storage.open import Folder, open_folder
from pipeline.versions import versions
from policy.spec import FrozenModel

DECODERS: Final = ("av", "h5py", "imagecodecs", "numcodecs", "pillow", "pyarrow", "zarr")


class SourceNote(FrozenModel):
    """What `vla-embed` last read."""

    manifest: Path
    """The manifest file, absolute."""
    stamp: str
    """`files_stamp` of the dataset, taken before its frames were read."""


def read_source(store: Folder) -> SourceNote | None:
    """Read a store's note; None where there is none (StoreError: the note is damaged)."""
    try:
        return read_sealed(store, SOURCE_NOTE, SourceNote)
    except FileNotFoundError:
        return None
    except StoreError as error:
        raise StoreError(f"{error}; delete this file, vla-embed writes it again") from error


def write_source(store: Folder, note: SourceNote) -> None:
    """Write a store's note, sealed."""
    write_sealed(store, SOURCE_NOTE, note)


def files_stamp(roots: Iterable[Location], store: Location) -> str:
    """Return a sha256 over name, size and time of change (or etag) of every file below the roots.

    Equal stamps mean that no file was written, added or removed, and that the same versions of the
    libraries decode them; otherwise a dataset is compared frame by frame. Files of `store`, an
    absolute path or an address, are left out: a store may be in a folder of its dataset.
    """
    own = f"{store}/", f"{store.parent}/.{store.name}."  # the latter are locks and copies
    digest = hashlib.sha256(" ".join(versions(*DECODERS)).encode())
    for root in roots:
        digest.update(b"\0root")
        above = root.resolve()
        for file in open_folder(root).files():
            if f"{above}/{file.name}".startswith(own):
                continue
            entry = f"{file.name}\0{file.size}\0{file.stamp}\0"
            digest.update(entry.encode(errors="surrogateescape"))  # names that are no UTF-8
    return digest.hexdigest()


def open_source(store: FeatureStore, manifest: Path | None = None) -> ManifestReader:
    """Open a store's dataset, by default that of its manifest; close the reader after use.

    Raises:
        StoreError: the store was made from other data, or its dataset is not known.
        ManifestError, DatasetError: the dataset cannot be read.
    """
    note = None if manifest else read_source(store.folder)
    path = manifest if note is None else note.manifest
    if path is None or not (manifest or path.is_file()):
        raise StoreError(
            f"{store.path}: the dataset's manifest is unknown or gone ({path}); pass its "
            f"--manifest, or run vla-embed again"
        )
    described = load_manifest(path)
    if described.manifest.digest() != store.attributes.manifest_digest:
        raise StoreError(
            f"{path}: is not the manifest of {store.path} (revision, rate, size, "
            f"views, keys or episodes differ); pass the right --manifest, or run vla-embed again"
        )
    reader = ManifestReader(described)
    ends = np.cumsum([*map(reader.episode_length, range(reader.num_episodes))], dtype=np.int64)
    held = store.read_episode_ends()
    if not np.array_equal(ends, held):
        reader.close()
        raise StoreError(
            f"{store.path}: holds {len(held)} episodes of {held[-1]} steps, the dataset has "
            f"{len(ends)} of {ends[-1]}; run vla-embed, or pass the right --manifest"
        )
    return reader
