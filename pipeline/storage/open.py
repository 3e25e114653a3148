"""Opens the folder at a location, on a disk or in object storage."""

from pathlib import Path

from pipeline.storage.folder import Folder
from pipeline.storage.local import LocalFolder
from pipeline.storage.location import Location
from policy.errors import MissingExtraError, install_command


def open_folder(location: Location) -> Folder:
    """Return the folder at a location, whether it exists or not.

    Raises:
        MissingExtraError: it is in object storage, and obstore is not installed.
    """
    if isinstance(location, Path):
        return LocalFolder(location)
    try:
        from pipeline.storage.objects.folder import ObjectFolder  # noqa: PLC0415 - optional
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{location}: object storage needs the module {error.name}, which is not installed; "
            f"{install_command('objects')}"
        ) from error
    return ObjectFolder(location)
