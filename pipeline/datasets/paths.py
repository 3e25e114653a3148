"""Where a dataset's files may lie: below its root, wherever links and `..` would lead.

Knows paths; opens no file. Datasets are downloaded, and what they say of paths is not trusted.
"""

from pathlib import Path

from pipeline.errors import DatasetError


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
        f"{root}: expected {relative!r} inside this place, found that it leads to {path}; write "
        "`allow_outside = true` into the manifest if you trust the dataset, or copy the file in"
    )
