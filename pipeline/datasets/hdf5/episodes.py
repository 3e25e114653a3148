"""Episodes in HDF5 files: groups of arrays, found and checked by their headers."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real

import h5py

from pipeline.datasets.base import DatasetConfig, EpisodeLabel, FormatSurvey
from pipeline.datasets.compressed import image_size
from pipeline.datasets.hdf5.files import (
    HDF5_ERRORS,
    find_dataset,
    find_object,
    is_compressed,
    is_numbers,
    require_written,
    single_value,
)
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.datasets.pixels import PixelLayout, pixel_layout, require_layout
from pipeline.errors import DatasetError
from pipeline.storage.location import Location


@dataclass(frozen=True)
class Hdf5Layout:
    """The groups of an episode's arrays in one format."""

    cameras: str
    """The group of the cameras' frames, relative to the episode's."""
    folders: tuple[str, ...]
    """The groups of arrays of numbers, relative to the episode's."""
    jpeg: bool
    """Whether two-axis uint8 arrays in the cameras' group are compressed frames."""
    without_cameras: str
    """What to do about an episode without frames."""


@dataclass(frozen=True)
class EpisodeGroup:
    """The file and group of an episode."""

    path: Location
    group: str
    """Key of the episode's group in the file; empty for the file itself."""
    number: int

    @property
    def name(self) -> str:
        """Name the episode for messages."""
        return f"{self.path}: {self.group.rpartition('/')[2]}" if self.group else str(self.path)

    def key(self, relative: str) -> str:
        """Return the key in the file of a key in the episode."""
        return f"{self.group}/{relative.strip('/')}"


@dataclass(frozen=True)
class EpisodeHeader:
    """Length and layouts of an episode's arrays, and its label."""

    at: EpisodeGroup
    length: int
    layouts: Mapping[str, PixelLayout | None]
    """By view key; None for compressed frames."""
    widths: Mapping[str, int]
    """By number key."""
    label: EpisodeLabel = field(default_factory=EpisodeLabel)


def read_header(
    file: h5py.File, at: EpisodeGroup, wanted: DatasetConfig, layout: Hdf5Layout
) -> EpisodeHeader:
    """Check an episode's arrays by their headers; no frame or number is read.

    Raises:
        DatasetError: an array is missing, of another type or shape, cut off, in another file, or
            longer than the others.
    """
    arrays, layouts, widths = {}, {}, {}
    for key in wanted.view_keys:
        view = arrays[key] = _dataset(file, at, key, layout, "frames")
        others = ", or JPEG or PNG files as (steps, bytes) or byte strings"
        layouts[key] = (
            None
            if is_compressed(view, in_rows=True)
            else require_layout(view.shape, view.dtype, f"{at.name}: {key}", others)
        )
    for key in wanted.number_keys:
        array = arrays[key] = _dataset(file, at, key, layout, "numbers")
        if not is_numbers(array):
            raise DatasetError(
                f"{at.name}: {key}: expected numbers of shape (steps, width) or (steps,), width at "
                f"least 1, found {array.dtype} {array.shape}; correct `key` in the manifest"
            )
        widths[key] = _width(array)
    lengths = {key: int(array.shape[0]) for key, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DatasetError(
            f"{at.name}: expected the same number of steps in all arrays, found {lengths}; cut "
            f"surplus rows off at the end, use other keys, or {LEAVE_OUT}"
        )
    length = next(iter(lengths.values()))
    if not length:
        raise DatasetError(f"{at.name}: expected at least one step, found none; {LEAVE_OUT}")
    for key, array in arrays.items():
        require_written(array, f"{at.name}: {key}")
    return EpisodeHeader(at=at, length=length, layouts=layouts, widths=widths)


def survey_episode(
    file: h5py.File,
    at: EpisodeGroup,
    layout: Hdf5Layout,
    *,
    fps: float | None,
    notes: Mapping[str, str],
) -> FormatSurvey:
    """List the cameras and number arrays of one episode, without depth cameras.

    Raises:
        DatasetError: the episode has no cameras.
    """
    views = _cameras(file, at, layout)
    if not views:
        raise _no_cameras(at, layout)
    columns = _columns(file, at, layout)
    lengths = Counter(array.shape[0] for array in (*views.values(), *columns.values()))
    length = lengths.most_common(1)[0][0]
    return FormatSurvey(
        fps=fps,
        views={key: _size(view, f"{at.name}: {key}") for key, view in views.items()},
        numbers={
            key: tuple(map(str, range(_width(array))))
            for key, array in columns.items()
            if array.shape[0] == length
        },
        notes=dict(notes),
    )


def truth(value: object) -> bool | None:
    """Return an attribute's truth value, stored as bool or as 0 and 1; None for others."""
    value = single_value(value)
    return bool(value) if isinstance(value, Real) and value in (0, 1) else None


def text(value: object) -> str | None:
    """Return an attribute's text; None for others."""
    value = single_value(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else None


def positive_number(value: object) -> float | None:
    """Return an attribute's number; None if it is not a finite number above 0."""
    value = single_value(value)
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    return float(value) if 0 < float(value) < float("inf") else None


def agreed_fps(stated: Iterable[tuple[Location, float | None]]) -> float | None:
    """Return the control steps per second that the files contain; None if none does.

    Raises:
        DatasetError: two files contain different ones.
    """
    known = [(path, fps) for path, fps in stated if fps is not None]
    for path, fps in known:
        if fps != known[0][1]:
            raise DatasetError(
                f"{path}: expected {known[0][1]} control steps per second as in "
                f"{known[0][0].name}, found {fps}; create one dataset per rate"
            )
    return known[0][1] if known else None


def _dataset(
    file: h5py.File, at: EpisodeGroup, key: str, layout: Hdf5Layout, kind: str
) -> h5py.Dataset:
    dataset = find_dataset(file, at.key(key))
    if dataset is not None:
        return dataset
    found = _cameras(file, at, layout) if kind == "frames" else _columns(file, at, layout)
    if not found and not _columns(file, at, layout):
        raise DatasetError(f"{at.name}: expected at least one step, found no array; {LEAVE_OUT}")
    if kind == "frames" and not found:
        raise _no_cameras(at, layout)
    raise DatasetError(
        f"{at.name}: expected {kind} at {key}, found none; the "
        f"{'cameras' if kind == 'frames' else 'arrays'} of this episode are "
        f"{', '.join(found) or 'none'}: correct `key` in the manifest, or remove the episode"
    )


def _no_cameras(at: EpisodeGroup, layout: Hdf5Layout) -> DatasetError:
    return DatasetError(
        f"{at.name}: expected frames in {layout.cameras}, found no camera; {layout.without_cameras}"
    )


def _cameras(file: h5py.File, at: EpisodeGroup, layout: Hdf5Layout) -> dict[str, h5py.Dataset]:
    return {
        key: array
        for key, array in _arrays_in(file, at, layout.cameras).items()
        if "depth" not in key
        if pixel_layout(array.shape, array.dtype) or is_compressed(array, in_rows=layout.jpeg)
    }


def _columns(file: h5py.File, at: EpisodeGroup, layout: Hdf5Layout) -> dict[str, h5py.Dataset]:
    return {
        key: array
        for folder in layout.folders
        for key, array in _arrays_in(file, at, folder).items()
        if is_numbers(array)
    }


def _arrays_in(file: h5py.File, at: EpisodeGroup, folder: str) -> dict[str, h5py.Dataset]:
    """List the datasets of a group by their keys in the episode, without links to other files."""
    group = find_object(file, at.key(folder))
    found = {}
    for name in group if isinstance(group, h5py.Group) else ():
        key = f"{folder}/{name}" if folder else name
        try:
            array = find_dataset(file, at.key(key))
        except DatasetError:
            continue
        if array is not None:
            found[key] = array
    return found


def _width(array: h5py.Dataset) -> int:
    return int(array.shape[1]) if array.ndim == 2 else 1


def _size(view: h5py.Dataset, where: str) -> tuple[int, int] | None:
    layout = pixel_layout(view.shape, view.dtype)
    if layout is not None:
        return layout.size
    try:
        return image_size(bytes(view[0]), where)
    except HDF5_ERRORS:
        return None
