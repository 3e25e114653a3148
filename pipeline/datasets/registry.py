"""The file formats, found by name or detected from the files.

Imports a reader only when it is needed, because its libraries may not be installed.
"""

import contextlib
import importlib
from collections.abc import Mapping
from typing import Final, Literal

from pipeline.datasets.base import DatasetConfig, FormatReader
from pipeline.errors import DatasetError
from pipeline.storage.location import Location, on_disk
from pipeline.storage.open import open_folder
from policy.errors import install_command

FormatName = Literal[
    "lerobot_v3", "lerobot_v2", "aloha_hdf5", "robomimic_hdf5", "diffusion_policy_zarr"
]
FORMATS: Final[Mapping[FormatName, tuple[str, str]]] = {
    "lerobot_v3": ("pipeline.datasets.lerobot.v3", "LeRobotV3Reader"),
    "lerobot_v2": ("pipeline.datasets.lerobot.v2", "LeRobotV2Reader"),
    "aloha_hdf5": ("pipeline.datasets.hdf5.aloha", "AlohaHdf5Reader"),
    "robomimic_hdf5": ("pipeline.datasets.hdf5.robomimic", "RobomimicHdf5Reader"),
    "diffusion_policy_zarr": (
        "pipeline.datasets.replay_buffer.reader",
        "DiffusionPolicyZarrReader",
    ),
}
_IN_BUCKETS: Final = "aloha_hdf5, robomimic_hdf5"  # those with `reads_objects`
_EXTRAS: Final = {"av": "lerobot", "pyarrow": "lerobot"}  # package: extra of this project


class _MissingPackageError(DatasetError):
    """A format cannot be read because an optional package is not installed."""


def format_class(name: FormatName) -> type[FormatReader]:
    """Return the reader class of a format (DatasetError: a package of it is not installed)."""
    module, attribute = FORMATS[name]
    try:
        reader: type[FormatReader] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRAS:
            raise
        raise _MissingPackageError(
            f"format {name}: expected the package {package}, which is not installed; "
            f"{install_command(_EXTRAS[package])}"
        ) from error
    return reader


def open_format(name: FormatName, config: DatasetConfig) -> FormatReader:
    """Open a dataset and check its headers (DatasetError: missing, damaged, or it lacks a key)."""
    reader = format_class(name)
    if on_disk(config.root) is None and not reader.reads_objects:
        raise DatasetError(
            f"{config.root}: expected one of the formats {_IN_BUCKETS}, found {name}; copy the "
            "dataset to a disk, or mount its bucket"
        )
    return reader(config)


def episode_numbers(name: FormatName, root: Location) -> list[int]:
    """List the numbers of all episodes of a dataset, whether or not their files exist."""
    numbers: set[int] = set()

    def note(number: int) -> bool:
        numbers.add(number)
        return False

    with contextlib.suppress(DatasetError):  # that none is kept
        open_format(name, DatasetConfig(root, (), (), keeps=note)).close()
    return sorted(numbers)


def detect_format(root: Location) -> FormatName:
    """Return the format of a dataset, by the names and headers of its files.

    Raises:
        DatasetError: there is no data, or of no or of several known formats.
        ObjectStorageError: object storage refuses, or does not answer.
    """
    if not open_folder(root).is_there():
        raise DatasetError(f"{root}: expected a dataset, found nothing; correct the path to it")
    found, missing, local_root = [], None, on_disk(root)
    for name in FORMATS:
        try:
            reader = format_class(name)
        except _MissingPackageError as error:
            missing = error
            continue
        if (reader.reads_objects or local_root) and reader.recognizes(root):
            found.append(name)
    if len(found) == 1:
        return found[0]
    if found:
        raise DatasetError(
            f"{root}: expected files of one format, found {' and '.join(found)}; write `format` "
            "into the manifest, or move each dataset to its own folder"
        )
    if missing and local_root:  # it may be the format that could not be detected
        raise DatasetError(f"{root}: cannot detect the format: {missing}")
    raise DatasetError(
        f"{root}: expected one of the formats {', '.join(FORMATS) if local_root else _IN_BUCKETS}, "
        "found neither meta/info.json (LeRobot), episode_<i>.hdf5 (ACT, ALOHA), HDF5 of demo_<i> "
        "(robomimic, LIBERO), nor a Zarr folder or .zarr.zip with data and meta/episode_ends "
        "(Diffusion Policy); correct the path to it, convert the dataset, or copy it to a disk"
    )
