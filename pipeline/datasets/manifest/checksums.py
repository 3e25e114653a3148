"""Compares files with a manifest's checksums."""

import hashlib
import posixpath
from collections.abc import Iterator

from pipeline.datasets.manifest.model import LoadedManifest
from pipeline.datasets.manifest.paths import file_in
from pipeline.errors import DatasetError
from pipeline.storage.location import Location
from pipeline.storage.open import open_folder


def verify_checksums(loaded: LoadedManifest) -> None:
    """Compare every file with its sha256 in the manifest, reading each file whole.

    Raises:
        DatasetError: a file is missing, unreadable, outside of the dataset, or a different one.
        ObjectStorageError: object storage refuses, or does not answer.
    """
    for error in wrong_checksums(loaded):
        raise error


def wrong_checksums(loaded: LoadedManifest) -> Iterator[DatasetError]:
    """Yield an error for every file that is missing, unreadable, outside, or a different one."""
    for source, root in zip(loaded.manifest.data_sources, loaded.roots, strict=True):
        for relative, expected in (source.checksums or {}).items():
            try:
                path = _path(root, relative, allow_outside=source.allow_outside)
                found = _sha256(path, loaded.origin)
            except DatasetError as error:
                yield error
                continue
            if found != expected:
                yield DatasetError(
                    f"{path}: expected sha256 {expected} as in `checksums` of {loaded.origin}, "
                    f"found {found}; download the file again, or correct the manifest"
                )


def _path(root: Location, relative: str, *, allow_outside: bool) -> Location:
    """Return the path of a file next to `root`, if that is a file, or else below it."""
    is_folder = open_folder(root).children() is not None
    folder, name = root if is_folder else root.parent, posixpath.normpath(relative)
    if str(folder / name) == str(root):
        return root  # even a link to outside: `path` of the manifest names it
    return file_in(folder, name, allow_outside=allow_outside)


def _sha256(path: Location, origin: str) -> str:
    try:
        with open_folder(path.parent).open(path.name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(
            f"{path}: expected a file, because `checksums` of {origin} names it, found "
            f"{error.strerror or 'none'}; download it again, or correct the name there"
        ) from error
