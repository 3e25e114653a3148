"""Opens the group and the arrays of a Zarr v2 replay buffer by their headers.

The one owner of zarr in this room. Codecs that run code (`pickle`) zarr itself refuses for numbers,
which the tests hold it to.
"""

import lzma
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

import zarr
import zarr.storage

from pipeline.datasets.causes import one_line
from pipeline.datasets.replay_buffer.chunks import (
    ChunkGrid,
    array_keys,
    has_array,
    require_headers,
    zip_members,
)
from pipeline.errors import DatasetError

ENDS_KEY: Final = "meta/episode_ends"
_PACKAGES: Final = {  # ids that datasets use, and what brings them; a file must not name packages
    f"imagecodecs_{name}": "imagecodecs imagecodecs-numcodecs"
    for name in ("avif", "jpeg", "jpeg2k", "jpegls", "jpegxl", "png", "webp")
}
# What codecs raise for damaged bytes: Blosc and Zstandard the first, the others as they please.
DAMAGE: Final = (
    *(RuntimeError, ValueError, TypeError, OSError, EOFError, OverflowError),
    *(zlib.error, lzma.LZMAError, zipfile.BadZipFile),
)


def open_group(root: Path, *, allow_outside: bool) -> zarr.Group:
    """Open the folder or zip as a Zarr v2 group, for reading only.

    Args:
        root: a folder, or a `.zip`.
        allow_outside: whether its header may lie outside `root`, behind a link.

    Raises:
        DatasetError: there is no such group, or one of Zarr format 3.
    """
    if root.is_dir() and (root / "zarr.json").is_file():
        raise DatasetError(
            f"{root}: expected Zarr format 2, as Diffusion Policy writes it, found format 3; copy "
            "it with zarr_format=2"
        )
    if not root.is_dir() and ".zgroup" not in (names := zip_members(root)):
        raise DatasetError(
            f"{root}: expected .zgroup, data/ and meta/ at the top of the zip, found "
            f"{', '.join(sorted({name.split('/')[0] for name in names})[:5]) or 'nothing'}; zip "
            "what is inside the .zarr folder, not the folder"
        )
    require_headers(root, "", allow_outside=allow_outside)
    store = zarr.storage.LocalStore(root, read_only=True) if root.is_dir() else None
    try:
        return zarr.open_group(
            store or zarr.storage.ZipStore(root, mode="r"),
            mode="r",
            zarr_format=2,
            use_consolidated=False,  # a copy of the headers, which may be an older one
        )
    except DAMAGE as error:
        raise DatasetError(
            f"{root}: expected a Zarr v2 replay buffer with data/ and {ENDS_KEY}, found none "
            f"({one_line(error)}); correct the path"
        ) from error


def open_array(group: zarr.Group, root: Path, key: str, *, allow_outside: bool) -> Any:
    """Open one array by its header; nothing is decoded.

    Args:
        group: what `open_group` returned for `root`.
        root: the folder or zip.
        key: the array: `data/img`, or `ENDS_KEY`.
        allow_outside: whether its header may lie outside `root`, behind a link.

    Returns:
        The `zarr.Array`.

    Raises:
        DatasetError: there is no such array, its header does not read, or its codec is not
            installed.
    """
    keys = array_keys(root)
    if not has_array(root, key) or (key != ENDS_KEY and key not in keys):
        raise DatasetError(
            f"{root}: expected an array {key}, found {', '.join(keys) or 'none'}; correct the key"
        )
    for folder in (key.partition("/")[0], key):
        require_headers(root, folder, allow_outside=allow_outside)
    try:
        array: Any = group[key]
        if not isinstance(array, zarr.Array):  # what zarr makes of a header without a shape
            raise TypeError("a header that lacks fields")
    except (KeyError, AttributeError, *DAMAGE) as error:
        raise _unreadable_header(f"{root}: {key}", error) from error
    return array


def _unreadable_header(place: str, error: Exception) -> DatasetError:
    codec = re.search(r"codec not available: '*\"*([\w.-]+)", str(error))
    if codec is None:
        found = f"none of {error}" if isinstance(error, KeyError) else one_line(error)
        return DatasetError(
            f"{place}: expected a header of Zarr v2 for numbers, found {found[:200]}; write the "
            "array again"
        )
    package = _PACKAGES.get(codec[1])
    if package is None:
        return DatasetError(
            f"{place}: expected a codec that is known, found the id {codec[1][:40]}; write the "
            "array again, compressed with Blosc"
        )
    return DatasetError(
        f"{place}: expected the codec {codec[1]} to be installed, found none; run "
        f"`pip install {package}`"
    )


def grid_of(array: Any) -> ChunkGrid:
    """Return how an array is cut into chunks."""
    return ChunkGrid(array.shape, array.chunks, array.metadata.dimension_separator)
