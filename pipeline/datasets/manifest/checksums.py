"""Compares files with a manifest's checksums."""

import hashlib
import os
import posixpath
from collections.abc import Iterator

from pipeline.datasets.manifest.model import LoadedManifest
from pipeline.datasets.manifest.paths import resolve_inside
from pipeline.errors import DatasetError
from pipeline.storage.location import Location, on_disk
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
    for place, root in zip(loaded.manifest.places, loaded.roots, strict=True):
        for relative, expected in (place.checksums or {}).items():
            try:
                path = _path(root, relative, allow_outside=place.allow_outside)
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
    place = on_disk(root)
    if place is None:
        parts = posixpath.normpath(relative).split("/")
        if parts[0] in ("", ".."):
            raise DatasetError(
                f"{root}: expected a name below this folder, found {relative!r} in `checksums`; "
                "correct it"
            )
        folder = root.parent if open_folder(root).children() is None else root
        return folder / "/".join(parts)
    if not place.is_file():
        return resolve_inside(place, relative, allow_outside=allow_outside)
    if os.path.normpath(place.parent / relative) == str(place):
        return place  # even behind a link: `path` of the manifest names it
    return resolve_inside(place.parent, relative, allow_outside=allow_outside)


def _sha256(path: Location, origin: str) -> str:
    try:
        with open_folder(path.parent).open(path.name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(
            f"{path}: expected a file, because `checksums` of {origin} names it, found "
            f"{error.strerror or 'none'}; download it again, or correct the name there"
        ) from error
