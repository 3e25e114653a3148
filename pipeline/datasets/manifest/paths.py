"""Paths of a dataset's files: below its root, wherever links and `..` lead."""

from pathlib import Path

from pipeline.datasets.causes import require_no_pointer
from pipeline.errors import DatasetError
from pipeline.storage.location import Location, on_disk


def resolve_inside(root: Path, relative: str, *, allow_outside: bool) -> Path:
    """Return the absolute, resolved path of `root / relative`; it need not exist.

    `root` may itself be reached through symbolic links; an absolute path counts as outside.

    Raises:
        DatasetError: the path leads outside `root` and `allow_outside` is False, or nowhere.
    """
    try:
        base, path = root.resolve(), (root / relative).resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise DatasetError(f"{root / relative}: does not resolve ({error}); correct it") from error
    if allow_outside or path == base or base in path.parents:
        return path
    raise DatasetError(
        f"{root}: expected {relative!r} inside this folder, found a link to {path}; copy "
        "the files in, or write `allow_outside = true` into the manifest if you trust the dataset"
    )


def file_in(root: Location, name: str, *, allow_outside: bool) -> Location:
    """Return the path of a file of a folder, or the address; links on a disk are resolved.

    Raises:
        DatasetError: it leads outside `root`, which is not allowed.
    """
    folder = on_disk(root)
    if folder is None:
        return root / name
    return resolve_inside(folder, name, allow_outside=allow_outside)


def read_file(root: Path, relative: str, *, allow_outside: bool) -> bytes:
    """Read a header, an index or an image.

    Raises:
        DatasetError: it is outside `root`, which is not allowed, or is a git-lfs pointer.
        OSError: there is no file, or it does not read.
    """
    content = resolve_inside(root, relative, allow_outside=allow_outside).read_bytes()
    require_no_pointer(root / relative, content)
    return content
