"""Episodes as HDF5 files keep them, found and checked by their headers.

An episode is a group of arrays.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real

import h5py

from pipeline.datasets.base import DatasetPlace, EpisodeLabel, FormatSurvey
from pipeline.datasets.compressed import image_size
from pipeline.datasets.hdf5.files import (
    HDF5_ERRORS,
    find_dataset,
    find_object,
    frame_layout,
    is_compressed,
    is_numbers,
    require_numbers,
    require_readable,
    single_value,
)
from pipeline.datasets.limits import MAX_COLUMNS
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.datasets.pixels import PixelLayout, pixel_layout
from pipeline.errors import DatasetError
from pipeline.storage.location import Location


@dataclass(frozen=True)
class Hdf5Layout:
    """Where an episode of a layout keeps its arrays."""

    cameras: str
    """The group of the cameras' frames, within the episode's."""
    folders: tuple[str, ...]
    """The groups that hold arrays of numbers, within the episode's."""
    jpeg: bool
    """Whether two-axis uint8 arrays of the cameras' group are compressed frames."""
    without_cameras: str
    """What to do about an episode that keeps no frames at all."""


@dataclass(frozen=True)
class EpisodePlace:
    """Where an episode lies."""

    path: Location
    group: str
    """Key of the episode's group in the file; empty for the file itself."""
    number: int
    """The number that the files give it."""

    @property
    def name(self) -> str:
        """Name the episode for messages."""
        return f"{self.path}: {self.group.rpartition('/')[2]}" if self.group else str(self.path)

    def key(self, relative: str) -> str:
        """Return the key in the file of a key in the episode."""
        return f"{self.group}/{relative.strip('/')}"


@dataclass(frozen=True)
class EpisodeFacts:
    """What the headers say of an episode."""

    place: EpisodePlace
    length: int
    layouts: Mapping[str, PixelLayout | None]
    """By view key; None of compressed frames."""
    widths: Mapping[str, int]
    """By number key."""
    label: EpisodeLabel = field(default_factory=EpisodeLabel)


def describe_episode(
    file: h5py.File, place: EpisodePlace, wanted: DatasetPlace, layout: Hdf5Layout
) -> EpisodeFacts:
    """Check an episode's arrays by their headers; no frame or number is read.

    Raises:
        DatasetError: an array is absent, of another type or shape, cut off, not in the file, or
            longer than the others.
    """
    views, layouts, columns = {}, {}, {}
    for key in wanted.view_keys:
        views[key] = _dataset(file, place, key, layout, "frames")
        layouts[key] = frame_layout(views[key], f"{place.name}: {key}")
    for key in wanted.number_keys:
        columns[key] = _dataset(file, place, key, layout, "numbers")
        require_numbers(columns[key], f"{place.name}: {key}")
    datasets = {**views, **columns}
    lengths = {key: int(dataset.shape[0]) for key, dataset in datasets.items()}
    if len(set(lengths.values())) > 1:
        raise DatasetError(
            f"{place.name}: expected the same number of steps everywhere, found {lengths}; cut an "
            f"array that has a last row of no step, name other keys, or {LEAVE_OUT}"
        )
    if 0 in lengths.values():
        raise DatasetError(f"{place.name}: expected at least one step, found none; {LEAVE_OUT}")
    for key, dataset in datasets.items():
        require_readable(dataset, f"{place.name}: {key}", are_frames=key in views)
    return EpisodeFacts(
        place=place,
        length=next(iter(lengths.values())),
        layouts=layouts,
        widths={
            key: int(array.shape[1]) if array.ndim == 2 else 1 for key, array in columns.items()
        },
    )


def survey_episode(
    file: h5py.File,
    place: EpisodePlace,
    layout: Hdf5Layout,
    *,
    fps: float | None,
    notes: Mapping[str, str],
) -> FormatSurvey:
    """List the cameras and number arrays of one episode; depth cameras are left out.

    Raises:
        DatasetError: the episode has no cameras.
    """
    views = _cameras(file, place, layout)
    if not views:
        raise _no_cameras(place, layout)
    columns = _columns(file, place, layout)
    lengths = Counter(array.shape[0] for array in (*views.values(), *columns.values()))
    length = lengths.most_common(1)[0][0]
    return FormatSurvey(
        fps=fps,
        views={key: _size(view, f"{place.name}: {key}") for key, view in views.items()},
        numbers={
            key: tuple(map(str, range(array.shape[1] if array.ndim == 2 else 1)))
            for key, array in columns.items()
            if array.shape[0] == length
        },
        notes=dict(notes),
    )


def truth(value: object) -> bool | None:
    """Return a truth value that files state, as bool or as 0 and 1; None where it is none."""
    value = single_value(value)
    return bool(value) if isinstance(value, Real) and value in (0, 1) else None


def text(value: object) -> str | None:
    """Return a text that files state; None where it is none."""
    value = single_value(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else None


def positive_number(value: object) -> float | None:
    """Return a number that files state, or None where it is no finite number above 0."""
    value = single_value(value)
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if 0 < number < float("inf") else None


def agreed_fps(stated: Iterable[tuple[Location, float | None]]) -> float | None:
    """Return the control steps a second that files state, or None where none does.

    Raises:
        DatasetError: two files state different ones.
    """
    known = [(path, fps) for path, fps in stated if fps is not None]
    for path, fps in known:
        if fps != known[0][1]:
            raise DatasetError(
                f"{path}: expected {known[0][1]} control steps a second as in {known[0][0].name}, "
                f"found {fps}; keep recordings of one rate to a dataset"
            )
    return known[0][1] if known else None


def _dataset(
    file: h5py.File, place: EpisodePlace, key: str, layout: Hdf5Layout, kind: str
) -> h5py.Dataset:
    dataset = find_dataset(file, place.key(key))
    if dataset is not None:
        return dataset
    cameras = _cameras(file, place, layout)
    if kind == "frames" and not cameras:
        raise _no_cameras(place, layout)
    found = cameras if kind == "frames" else _columns(file, place, layout)
    raise DatasetError(
        f"{place.name}: expected {kind} at {key}, found none; the "
        f"{'cameras' if kind == 'frames' else 'arrays'} of this episode are "
        f"{', '.join(found) or 'none'}: correct `key` in the manifest, or remove the episode"
    )


def _no_cameras(place: EpisodePlace, layout: Hdf5Layout) -> DatasetError:
    return DatasetError(
        f"{place.name}: expected frames in {layout.cameras}, found no camera; "
        f"{layout.without_cameras}"
    )


def _cameras(file: h5py.File, place: EpisodePlace, layout: Hdf5Layout) -> dict[str, h5py.Dataset]:
    return {
        key: array
        for key, array in _arrays_in(file, place, layout.cameras).items()
        if "depth" not in key
        if pixel_layout(array.shape, array.dtype) or is_compressed(array, in_rows=layout.jpeg)
    }


def _columns(file: h5py.File, place: EpisodePlace, layout: Hdf5Layout) -> dict[str, h5py.Dataset]:
    found = {}
    for folder in layout.folders:
        for key, array in _arrays_in(file, place, folder).items():
            if is_numbers(array) and (array.ndim == 1 or 1 <= array.shape[1] <= MAX_COLUMNS):
                found[key] = array
    return found


def _arrays_in(file: h5py.File, place: EpisodePlace, folder: str) -> dict[str, h5py.Dataset]:
    """List the datasets of a group by their keys in the episode; links to outside are passed."""
    group = find_object(file, place.key(folder))
    if not isinstance(group, h5py.Group):
        return {}
    found = {}
    for name in group:
        key = f"{folder}/{name}" if folder else name
        try:
            array = find_dataset(file, place.key(key))
        except DatasetError:
            continue
        if array is not None:
            found[key] = array
    return found


def _size(view: h5py.Dataset, where: str) -> tuple[int, int] | None:
    layout = pixel_layout(view.shape, view.dtype)
    if layout is not None:
        return layout.size
    try:
        require_readable(view, where, are_frames=True)
        return image_size(bytes(view[0]), where)
    except HDF5_ERRORS:  # our own errors are among them
        return None
