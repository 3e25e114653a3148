"""Where a store's frames came from: the manifest file, and a stamp of the files it leads to.

Knows files, not frames. The note lies beside the arrays and promises nothing about them: it spares
reading every frame again where no file was touched, and tells `vla-data verify` what to read.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import StoreError
from pipeline.features.store.records import SOURCE_NOTE, read_sealed, write_sealed
from pipeline.storage.folders import Folder, Location, ObjectUrl, list_objects

DECODERS: Final = ("av", "h5py", "imagecodecs", "numcodecs", "pillow", "pyarrow", "zarr")


class SourceNote(BaseModel):
    """What `vla-embed` last read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest: Path
    """The manifest file, absolute."""
    stamp: str
    """`files_stamp` of the dataset, taken before its frames were read."""


def read_source(store: Folder) -> SourceNote | None:
    """Read a store's note; None where there is none.

    Raises:
        StoreError: the note is damaged.
    """
    try:
        return SourceNote.model_validate(read_sealed(store, SOURCE_NOTE))
    except FileNotFoundError:
        return None
    except (StoreError, ValidationError) as error:
        raise StoreError(
            f"{store}/{SOURCE_NOTE}: expected the note of vla-embed, found "
            f"{str(error).splitlines()[0]}; remove this file, vla-embed writes another"
        ) from error


def write_source(store: Folder, note: SourceNote) -> None:
    """Write a store's note; whole or not at all, and sealed."""
    write_sealed(store, SOURCE_NOTE, note.model_dump(mode="json"))


def files_stamp(roots: Iterable[Location]) -> str:
    """Return a sha256 over name, size and time of change of every file below the roots.

    Of objects over name, size and etag, which a listing tells.

    Equal stamps mean that no file was written, added or removed, and that the same versions of the
    libraries decode them; otherwise a dataset is compared frame by frame. Links are followed.

    Raises:
        ObjectStorageError: object storage refuses, or does not answer.
    """
    digest = hashlib.sha256(" ".join(_decoders()).encode())
    for root in roots:
        digest.update(b"\0root")
        if isinstance(root, ObjectUrl):
            for entry in sorted(list_objects(root)):
                digest.update(f"{entry.name}\0{entry.size}\0{entry.e_tag}\0".encode())
            continue
        for path in sorted([root] if root.is_file() else _files_below(root)):
            status = path.stat()
            name = os.fsencode(path.relative_to(root))
            digest.update(b"%b\0%d\0%d\0" % (name, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def _files_below(root: Path) -> Iterator[Path]:
    seen = set()  # a link may lead back to a folder above it
    for folder, folders, files in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (path for name in files if (path := Path(folder, name)).is_file())


def _decoders() -> Iterator[str]:
    for library in DECODERS:
        try:
            yield f"{library} {version(library)}"
        except PackageNotFoundError:
            yield f"{library} absent"
