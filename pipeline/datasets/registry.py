"""The file layouts that are read: found by name or by a look at the files.

Knows which file beside this one reads which layout; imports a reader only when it is asked for,
because its libraries may be absent. Knows no manifest.
"""

import contextlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, Protocol, cast, runtime_checkable

from pipeline.datasets.base import DatasetPlace, FormatReader, FormatSurvey
from pipeline.datasets.manifest.paths import read_file
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
_EXTRAS: Final = {"av": "lerobot", "pyarrow": "lerobot"}  # package: extra of this project


@runtime_checkable  # the test run checks return types
class FormatClass(Protocol):
    """The class of a format's reader."""

    reads_objects: bool
    """Whether it reads from object storage; others are asked about paths alone."""

    def __call__(self, place: DatasetPlace) -> FormatReader:
        """Open a dataset and check it by its headers."""

    @staticmethod
    def recognizes(root: Location) -> bool:
        """Whether `root` looks like this layout: names and headers only.

        Raises:
            ObjectStorageError: object storage refuses, or does not answer.
        """

    @staticmethod
    def survey(root: Location) -> FormatSurvey:
        """Say what the dataset offers, to start a manifest from.

        Raises:
            DatasetError: the dataset does not read.
        """


class _MissingPackageError(DatasetError):
    """A layout cannot be read because an optional package is not installed."""


def format_class(name: FormatName) -> FormatClass:
    """Return the class that reads a layout.

    Raises:
        DatasetError: a package that it needs is not installed; says how to install it.
    """
    module, attribute = FORMATS[name]
    try:
        return cast("FormatClass", getattr(importlib.import_module(module), attribute))
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRAS:
            raise
        raise _MissingPackageError(
            f"format {name}: expected the package {package}, found that it is not installed; "
            f"{install_command(_EXTRAS[package])}"
        ) from error


def open_format(name: FormatName | None, place: DatasetPlace) -> FormatReader:
    """Open a dataset and check it by its headers.

    Args:
        name: its layout; None finds it out.
        place: what to open.

    Raises:
        DatasetError: the data is absent, damaged, of no known layout, or lacks a key.
    """
    reader = format_class(name or detect_format(place.root))
    if on_disk(place.root) is None and not reader.reads_objects:
        raise DatasetError(
            f"{place.root}: expected one of the layouts that are read from object storage "
            f"({', '.join(_from_objects())}), found {name}; copy the dataset to a disk, or mount "
            "its bucket"
        )
    return reader(place)


def episode_numbers(name: FormatName, root: Location) -> list[int]:
    """List the numbers of all episodes of a dataset, whether or not their files are there."""
    numbers: list[int] = []

    def note(number: int) -> bool:
        numbers.append(number)
        return False

    with contextlib.suppress(DatasetError):  # that none is wanted
        open_format(name, DatasetPlace(root, (), (), keeps=note)).close()
    return sorted(numbers)


def detect_format(root: Location) -> FormatName:
    """Say which layout the files have, by their names and headers.

    Raises:
        DatasetError: there is nothing, no layout that is read, or more than one of them.
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
        if local_root is None and not reader.reads_objects:
            continue
        if reader.recognizes(root):
            found.append(name)
    if len(found) == 1:
        return found[0]
    if found:
        raise DatasetError(
            f"{root}: expected files of one layout, found {' and '.join(found)}; write `format` "
            "into the manifest, or keep one dataset to a folder"
        )
    if local_root is None:
        raise DatasetError(
            f"{root}: expected one of the layouts that are read from object storage "
            f"({', '.join(_from_objects())}), found neither episode_<i>.hdf5 nor an HDF5 file of "
            f"data/demo_<i>; correct the address, or copy the dataset to a disk"
        )
    if missing:  # it may be the layout that could not be looked for
        raise DatasetError(f"{root}: found no layout that is read without it: {missing}")
    raise DatasetError(
        f"{root}: expected one of the layouts {', '.join(FORMATS)}, found "
        f"{_what_it_is(local_root)}; correct the path to it, or convert the dataset"
    )


def _from_objects() -> list[FormatName]:
    """List the layouts that are read from object storage, of those that can be imported."""
    names = []
    for name in FORMATS:
        with contextlib.suppress(_MissingPackageError):
            if format_class(name).reads_objects:
                names.append(name)
    return names


def _what_it_is(root: Path) -> str:
    """Name what is known and not read; what is looked for where it is something else."""
    for info in ("meta/info.json", "meta_data/info.json"):
        try:
            content = json.loads(read_file(root, info, allow_outside=False))
        except (OSError, ValueError, RecursionError):  # our own errors are among them
            continue
        if isinstance(content, dict):
            version = str(content.get("codebase_version", "none"))[:20]
            storage = str(content.get("storage_format", "parquet"))[:20]
            return (
                f"LeRobot data with codebase_version {version} stored as {storage}, of which "
                "v2.0, v2.1 and v3.0 in parquet are read"
            )
    if any(root.glob("*.lance")):
        return "Lance tables, which are not read"
    return (
        "neither meta/info.json (LeRobot), episode_<i>.hdf5 (ACT, ALOHA), an HDF5 file of "
        "data/demo_<i> (robomimic, LIBERO), nor a Zarr folder or .zarr.zip with data and "
        "meta/episode_ends (Diffusion Policy)"
    )
