"""The base class of the readers of HDF5 formats: an episode is a group of arrays in a file."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import h5py
import numpy as np
from jaxtyping import Shaped

from pipeline.datasets.arrays import (
    ArrayReader,
    PixelLayout,
    number_columns,
    number_width,
    pixel_layout,
    require_layout,
    require_numbers,
)
from pipeline.datasets.base import DatasetConfig, Episode, EpisodeLabel, FormatSurvey
from pipeline.datasets.compressed import image_size
from pipeline.datasets.hdf5.files import (
    HDF5_ERRORS,
    find_dataset,
    find_object,
    hdf5_file,
    require_written,
)
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.errors import DatasetError
from pipeline.storage.location import Location


@dataclass(frozen=True)
class Hdf5Episode(Episode):
    """An episode whose headers have been read."""

    group: str
    """Key of its group in the file."""
    layouts: Mapping[str, PixelLayout | None]
    """By view key; None for compressed frames."""
    widths: Mapping[str, int]
    """By number key."""
    label: EpisodeLabel


class Hdf5Reader(ArrayReader):
    """Episodes of HDF5 files, of which one is open at a time.

    Recorders that swapped the channels before they compressed frames leave blue where red should
    be; the manifest's `color_order` corrects that.
    """

    reads_objects = True
    damage = HDF5_ERRORS
    cameras: ClassVar[str]
    """The group of the cameras' frames in an episode."""
    folders: ClassVar[tuple[str, ...]]
    """The groups of arrays of numbers in an episode."""
    without_cameras: ClassVar[str]
    """What to do about an episode without frames."""
    _episodes: Sequence[Hdf5Episode]

    def __init__(self, config: DatasetConfig, episodes: Sequence[Hdf5Episode]) -> None:
        """Store one or more episodes (DatasetError: an array is wider in one than in another)."""
        super().__init__(config)
        self._episodes, first = episodes, episodes[0]
        self._open: tuple[Location, h5py.File] | None = None
        for other in episodes:
            for key, width in other.widths.items():
                if width != first.widths[key]:
                    raise DatasetError(
                        f"{other.name}: expected width {first.widths[key]} of {key} as in "
                        f"{first.name}, found {width}; create one dataset per robot"
                    )

    def label(self, episode: int) -> EpisodeLabel:
        return self._episodes[episode].label

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _layout(self, episode: int, view_key: str) -> PixelLayout | None:
        return self._episodes[episode].layouts[view_key]

    def _read(self, episode: int, key: str, start: int, stop: int) -> Shaped[np.ndarray, "t ..."]:
        of = self._episodes[episode]
        if self._open is None or self._open[0] != of.path:
            self.close()
            self._open = (of.path, hdf5_file(of.path))
        dataset = find_dataset(self._open[1], f"{of.group}/{key}")
        if dataset is None or len(dataset) != of.length:
            raise ValueError(f"{key} has changed since the dataset was opened")
        return np.asarray(dataset[start:stop])

    @classmethod
    def read_header(
        cls,
        group: h5py.Group,
        path: Location,
        number: int,
        config: DatasetConfig,
        *,
        label: EpisodeLabel,
    ) -> Hdf5Episode:
        """Check the arrays of the episode in a group of the file at `path`, by their headers.

        Raises:
            DatasetError: an array is missing, of another type or shape, cut off, in another file,
                or longer than the others.
        """
        name, arrays = _name(group, path), {}
        layouts: dict[str, PixelLayout | None] = {}
        widths: dict[str, int] = {}
        for key in config.view_keys:
            view = arrays[key] = cls._find(group, name, key, "frames")
            is_files = _is_compressed(view, in_rows=True)
            layouts[key] = None if is_files else require_layout(view, f"{name}: {key}")
        for key in config.number_keys:
            arrays[key] = cls._find(group, name, key, "numbers")
            widths[key] = require_numbers(arrays[key], f"{name}: {key}")
        lengths = {key: len(array) for key, array in arrays.items()}
        length = next(iter(lengths.values()))
        if len(set(lengths.values())) > 1:
            raise DatasetError(
                f"{name}: expected the same number of steps in all arrays, found {lengths}; cut "
                f"surplus rows off at the end, use other keys, or {LEAVE_OUT}"
            )
        if not length:
            raise DatasetError(f"{name}: expected at least one step, found none; {LEAVE_OUT}")
        for key, array in arrays.items():
            require_written(array, f"{name}: {key}")
        return Hdf5Episode(number, path, name, length, group.name, layouts, widths, label)

    @classmethod
    def survey_group(
        cls, group: h5py.Group, path: Location, fps: float | None, notes: dict[str, str]
    ) -> FormatSurvey:
        """List the color cameras and arrays of an episode (DatasetError: it has no cameras)."""
        name, (views, numbers) = _name(group, path), cls._arrays(group)
        if not views:
            raise DatasetError(
                f"{name}: expected frames in {cls.cameras}, found none; {cls.without_cameras}"
            )
        lengths = [len(array) for array in (*views.values(), *numbers.values())]
        length = max(lengths, key=lengths.count)  # an unused array may be of another one
        sizes = {key: _frame_size(view, f"{name}: {key}") for key, view in views.items()}
        of_steps = {key: array for key, array in numbers.items() if len(array) == length}
        return FormatSurvey(fps, sizes, number_columns(of_steps), notes)

    @classmethod
    def _find(cls, group: h5py.Group, name: str, key: str, kind: str) -> h5py.Dataset:
        """Return the array of one of the episode's keys; `kind` is `frames` or `numbers`."""
        array = find_dataset(group, key)
        if array is not None:
            return array
        cameras, numbers = cls._arrays(group)
        others, advice = (cameras if kind == "frames" else numbers), "correct `key` in the manifest"
        if not others:
            advice = cls.without_cameras if numbers else "use other episodes"
        raise DatasetError(
            f"{name}: expected {kind} at {key}, found {'only ' * bool(others)}"
            f"{', '.join(others) or 'none'}; {advice}, or {LEAVE_OUT}"
        )

    @classmethod
    def _arrays(cls, group: h5py.Group) -> tuple[dict[str, h5py.Dataset], dict[str, h5py.Dataset]]:
        """List the color cameras and the arrays of numbers, without links to other files."""
        found: dict[str, h5py.Dataset] = {}
        for folder in dict.fromkeys((cls.cameras, *cls.folders)):
            node = find_object(group, folder) if folder else group
            for name in node if isinstance(node, h5py.Group) else ():
                key = f"{folder}/{name}" if folder else name
                with suppress(DatasetError):
                    if (array := find_dataset(group, key)) is not None:
                        found[key] = array
        # Rows of uint8 may be numbers where those are next to the cameras.
        in_rows = cls.cameras not in cls.folders
        cameras = {
            key: array
            for key, array in found.items()
            if key.startswith(f"{cls.cameras}/") and "depth" not in key
            if pixel_layout(array) or _is_compressed(array, in_rows=in_rows)
        }
        numbers = {
            key: array
            for key, array in found.items()
            if key.rpartition("/")[0] in cls.folders and number_width(array)
        }
        return cameras, numbers


def agreed_fps(stated: Iterable[tuple[Location, float | None]]) -> float | None:
    """Return the control steps per second of the files, if any (DatasetError: they differ)."""
    known = [(path, fps) for path, fps in stated if fps is not None]
    for path, fps in known:
        if fps != known[0][1]:
            raise DatasetError(
                f"{path}: expected {known[0][1]} control steps per second as in "
                f"{known[0][0].name}, found {fps}; create one dataset per rate"
            )
    return known[0][1] if known else None


def _name(group: h5py.Group, path: Location) -> str:
    return str(path) if group.name == "/" else f"{path}: {group.name.rpartition('/')[2]}"


def _is_compressed(array: h5py.Dataset, *, in_rows: bool) -> bool:
    """Whether an array has the shape and type of JPEG or PNG files, one per step.

    `in_rows`: padded rows of uint8 count too, not only byte strings and rows of varying length.
    """
    if array.ndim == 1:
        kind = h5py.check_vlen_dtype(array.dtype)
        return kind == np.uint8 or h5py.check_string_dtype(array.dtype) is not None
    return bool(in_rows and array.ndim == 2 and array.dtype == np.uint8 and array.shape[1])


def _frame_size(view: h5py.Dataset, where: str) -> tuple[int, int] | None:
    layout = pixel_layout(view)
    if layout is not None:
        return layout.size
    try:
        return image_size(bytes(view[0]), where)
    except HDF5_ERRORS:
        return None
