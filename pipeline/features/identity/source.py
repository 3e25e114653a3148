"""Where a store's frames came from: the manifest file, and a stamp of the files it leads to.

The note saves comparing every frame where no file was touched, and names the dataset for
`vla-data verify`. No hash of the arrays covers it.
"""

import hashlib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import ValidationError

from pipeline.datasets.manifest.model import load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import StoreError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.records import SOURCE_NOTE, read_sealed, write_sealed
from pipeline.storage.folder import Folder
from pipeline.storage.location import Location
from pipeline.storage.open import open_folder
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
        return SourceNote.model_validate(read_sealed(store, SOURCE_NOTE))
    except FileNotFoundError:
        return None
    except (StoreError, ValidationError) as error:
        raise StoreError(
            f"{store}/{SOURCE_NOTE}: expected the file that vla-embed wrote, found "
            f"{str(error).splitlines()[0]}; delete this file, vla-embed writes it again"
        ) from error


def write_source(store: Folder, note: SourceNote) -> None:
    """Write a store's note, sealed."""
    write_sealed(store, SOURCE_NOTE, note.model_dump(mode="json"))


def files_stamp(roots: Iterable[Location]) -> str:
    """Return a sha256 over name, size and time of change (or etag) of every file below the roots.

    Equal stamps mean that no file was written, added or removed, and that the same versions of the
    libraries decode them; otherwise a dataset is compared frame by frame.
    """
    digest = hashlib.sha256(" ".join(_decoders()).encode())
    for root in roots:
        digest.update(b"\0root")
        for file in open_folder(root).files():
            entry = f"{file.name}\0{file.size}\0{file.stamp}\0"
            digest.update(entry.encode(errors="surrogateescape"))  # names that are no UTF-8
    return digest.hexdigest()


def _decoders() -> Iterator[str]:
    for library in DECODERS:
        try:
            yield f"{library} {version(library)}"
        except PackageNotFoundError:
            yield f"{library} absent"


def open_source(store: FeatureStore, manifest: Path | None = None) -> ManifestReader:
    """Open a store's dataset, by default that of its manifest; close the reader after use.

    Raises:
        StoreError: the store was made from other data, or its dataset is not known.
        ManifestError, DatasetError: the dataset cannot be read.
    """
    path = manifest or _manifest_of(store.folder)
    described = load_manifest(path)
    if described.manifest.digest() != store.attributes.manifest_digest:
        raise StoreError(
            f"{path}: is not the manifest of {store.path} (revision, rate, size, "
            f"views or keys differ); pass the right --manifest, or run vla-embed again"
        )
    reader = ManifestReader(described)
    try:
        _check_same_data(store, reader)
    except StoreError:
        reader.close()
        raise
    return reader


def _manifest_of(store: Folder) -> Path:
    note = read_source(store)
    if note is None or not note.manifest.is_file():
        gone = "" if note is None else f" ({note.manifest} is gone)"
        raise StoreError(
            f"{store}: the path of its dataset is unknown{gone}; pass its --manifest, or run "
            f"vla-embed again"
        )
    return note.manifest


def _check_same_data(store: FeatureStore, reader: ManifestReader) -> None:
    lengths = [reader.episode_length(episode) for episode in range(reader.num_episodes)]
    ends = np.cumsum(lengths, dtype=np.int64)
    held = store.read_episode_ends()
    if reader.view_names != store.attributes.view_names or not np.array_equal(ends, held):
        raise StoreError(
            f"{store.path}: holds {len(held)} episodes of {int(held[-1])} steps, views "
            f"{', '.join(store.attributes.view_names)}; the dataset has {len(ends)} of "
            f"{int(ends[-1])}, {', '.join(reader.view_names)}; run vla-embed, or pass the right "
            f"--manifest"
        )
