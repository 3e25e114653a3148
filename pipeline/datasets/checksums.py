"""Whether files are those that a manifest's checksums name.

Knows files and sha256; opens no dataset.
"""

import hashlib
from pathlib import Path

from pipeline.datasets.manifest import Manifest
from pipeline.datasets.paths import resolve_inside
from pipeline.errors import DatasetError


def verify_checksums(manifest: Manifest) -> int:
    """Compare every file that the manifest gives a sha256 of with it, reading each file whole.

    Returns:
        How many files were compared; 0 for a manifest without checksums.

    Raises:
        DatasetError: a file is absent, unreadable, outside of the dataset, or another one.
    """
    num_files = 0
    for place, root in zip(manifest.places, manifest.roots, strict=True):
        folder = root.parent if root.is_file() else root
        for relative, expected in (place.checksums or {}).items():
            path = resolve_inside(folder, relative, allow_outside=place.allow_outside)
            found = _sha256(path, manifest.origin)
            if found != expected:
                raise DatasetError(
                    f"{path}: expected sha256 {expected} as in `checksums` of {manifest.origin}, "
                    f"found {found}; download the file again, or correct the manifest"
                )
            num_files += 1
    return num_files


def _sha256(path: Path, origin: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(
            f"{path}: expected a file, because `checksums` of {origin} names it, found "
            f"{error.strerror}; download it again, or remove it there"
        ) from error
