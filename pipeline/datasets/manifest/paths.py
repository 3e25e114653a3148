"""Where a dataset's files may lie: below its root, wherever links and `..` would lead.

Datasets are downloaded, and what they say of paths is not trusted.
"""

from pathlib import Path

from pipeline.datasets.causes import require_no_pointer
from pipeline.datasets.limits import MAX_METADATA_BYTES
from pipeline.errors import DatasetError
from pipeline.storage.location import Location, on_disk


def resolve_inside(root: Path, relative: str, *, allow_outside: bool) -> Path:
    """Return the absolute, resolved path of `root / relative`; it need not exist.

    Args:
        root: the dataset; may itself be reached through symbolic links.
        relative: as the dataset names the file; an absolute path counts as outside.
        allow_outside: whether the manifest permits files outside `root`.

    Raises:
        DatasetError: the path leads outside `root` and `allow_outside` is False, or is no path.
    """
    try:
        base, path = root.resolve(), (root / relative).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL character
        raise DatasetError(
            f"{root}: expected a path below this place, found {relative!r}, which leads nowhere "
            f"({error}); correct it"
        ) from error
    if allow_outside or path == base or base in path.parents:
        return path
    raise DatasetError(
        f"{root}: expected {relative!r} inside this place, found that it leads to {path}; copy the "
        "files in, or write `allow_outside = true` into the manifest if you trust the dataset"
    )


def file_in(root: Location, name: str, *, allow_outside: bool) -> Location:
    """Return where a file of a folder lies; of this machine's, with its links resolved.

    Raises:
        DatasetError: it leads outside `root`, which is not allowed.
    """
    folder = on_disk(root)
    if folder is None:
        return root / name
    return resolve_inside(folder, name, allow_outside=allow_outside)


def require_small_file(root: Path, relative: str, *, allow_outside: bool) -> Path:
    """Return where a header, an index or a picture lies, which is to be read whole.

    Raises:
        DatasetError: it lies outside `root`, which is not allowed, is no file (a pipe would wait
            for its writer, a device never end), or is larger than any such file.
        FileNotFoundError: there is nothing.
    """
    path = resolve_inside(root, relative, allow_outside=allow_outside)
    size = path.stat().st_size
    if not path.is_file() or size > MAX_METADATA_BYTES:
        found = f"{size} bytes" if path.is_file() else "something else"
        raise DatasetError(
            f"{root / relative}: expected a file of at most {MAX_METADATA_BYTES} bytes, found "
            f"{found}; download the dataset again"
        )
    return path


def read_small_file(root: Path, relative: str, *, allow_outside: bool) -> bytes:
    """Read a header, an index or a picture whole.

    Raises:
        DatasetError: as of `require_small_file`, or git-lfs left a pointer in its place.
        OSError: there is nothing, or it does not read.
    """
    content = require_small_file(root, relative, allow_outside=allow_outside).read_bytes()
    require_no_pointer(root / relative, content)
    return content
