"""Where a dataset's files lie: in a folder of this machine, or below an address.

Knows names of files; opens none.
"""

from pathlib import Path

from pipeline.datasets.manifest.paths import resolve_inside
from pipeline.storage.folders import Location, list_objects


def is_there(root: Location) -> bool:
    """Whether there is a file or a folder.

    Raises:
        ObjectStorageError: object storage refuses, or does not answer.
    """
    return root.exists() if isinstance(root, Path) else any(list_objects(root))


def files_in(root: Location) -> list[Location] | None:
    """Return what lies directly in a folder, in no order; None where there is no folder.

    Raises:
        OSError: the folder does not read.
        ObjectStorageError: object storage refuses, or does not answer.
    """
    if isinstance(root, Path):
        return list(root.iterdir()) if root.is_dir() else None
    names = [entry.name for entry in list_objects(root)]
    return [root / name for name in names if "/" not in name] if any(names) else None


def file_in(root: Location, name: str, *, allow_outside: bool) -> Location:
    """Return where a file of a folder lies; of this machine's, with its links resolved.

    Raises:
        DatasetError: it leads outside `root`, which is not allowed.
    """
    if isinstance(root, Path):
        return resolve_inside(root, name, allow_outside=allow_outside)
    return root / name
