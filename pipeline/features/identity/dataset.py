"""The dataset that a store was made from, opened again.

Knows manifests, readers and stores; no encoder. What the store says of its rows is compared with
what the dataset holds now; the pixels are the caller's to compare.
"""

from pathlib import Path

import numpy as np

from pipeline.datasets.manifest.model import load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import StoreError
from pipeline.features.identity.source import read_source
from pipeline.features.store.feature_store import FeatureStore
from pipeline.storage.folder import Folder


def open_source(store: FeatureStore, manifest: Path | None = None) -> ManifestReader:
    """Open a store's dataset; close the reader after use.

    Args:
        store: complete or not.
        manifest: the dataset's; None takes the one that the store was made from.

    Raises:
        StoreError: the store was made from other data, or its dataset is not known.
        ManifestError, DatasetError: the dataset cannot be read.
    """
    path = manifest or _manifest_of(store.folder)
    described = load_manifest(path)
    if described.manifest.digest() != store.attributes.manifest_digest:
        raise StoreError(
            f"{path}: is not the manifest that {store.path} was made with (its revision, rate, "
            f"size, views or keys differ); name the right --manifest, or run vla-embed again"
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
            f"{store}: does not say where its dataset lies{gone}; name it with --manifest, or run "
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
            f"{int(ends[-1])}, {', '.join(reader.view_names)}; run vla-embed, or name the right "
            f"--manifest"
        )
