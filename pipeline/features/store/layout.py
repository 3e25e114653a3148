"""The arrays of a feature store: their shapes, chunks and codecs, in Zarr format 3.

Knows zarr; nothing about commits, encoders or what the numbers mean. Every array ends in a crc32c:
raw and compressed chunks alike would otherwise read a flipped bit as data. An absent chunk reads
as the fill value without a word, so that features and steps are filled with NaN or -1.
"""

from itertools import chain
from typing import Any, Final, Literal

import numpy as np
import zarr
from pydantic import ValidationError
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import BaseZarrError

from pipeline.errors import StoreError
from pipeline.features.identity.probe import Probe
from pipeline.features.store.attributes import Codec, StoreAttributes
from pipeline.features.store.records import COMMITS
from pipeline.features.store.start_frames import MAX_STARTS, SIZE, spread_evenly
from pipeline.features.store.steps import PIECE_ROWS, STEP_ARRAYS, Steps
from pipeline.features.store.units import CHUNK_ROWS
from pipeline.storage.folders import Folder, LocalFolder
from policy.encoders.environment import EngineRecord
from policy.spec import FEATURE_DIM

Codecs = list[BloscCodec | Crc32cCodec]

UNIT_ARRAYS: Final[dict[str, tuple[str, tuple[int, ...]]]] = {
    "features": ("float16", (FEATURE_DIM,)),  # dtype, and axes after rows and slots
    "frame_hash": ("uint64", ()),
}
# What damage makes zarr and numcodecs raise: a wrong checksum is a ValueError, a chunk that does
# not decompress a RuntimeError, a codec with an unknown field a TypeError.
UNREADABLE: Final = (BaseZarrError, ValueError, RuntimeError, OSError, KeyError, TypeError)
PROBE: Final = "probe"
ROOT: Final = "zarr.json"  # the store exists once this file does
START_ARRAYS: Final = ("start_frames", "start_episodes")
ROOTS: Final = (ROOT, "features", "frame_hash", *STEP_ARRAYS, *START_ARRAYS, PROBE)


def feature_codecs(codec: Codec) -> Codecs:
    """Return what a chunk of features passes through on its way to the disk."""
    if codec == "none":
        return [Crc32cCodec()]
    return [_blosc(np.dtype(np.float16)), Crc32cCodec()]


def is_vacant(folder: Folder) -> bool:
    """Whether a store may be created: nothing is there but what a creation that was cut off left.

    Raises:
        OSError, ObjectStorageError: the place cannot be looked at.
    """
    return folder.is_vacant(ROOTS[1:])


def create_arrays(folder: Folder, attributes: StoreAttributes, steps: Steps, probe: Probe) -> None:
    """Create a store with every array at full size, whole or not at all; no features yet.

    Args:
        folder: to create; it must be vacant.
        attributes: what the store says of itself.
        steps: of the dataset.
        probe: of the encoder that will fill the store.

    Raises:
        DatasetError: some numbers cannot be used as they are; there is no store.
        StoreError: another process has created another store there meanwhile.
        OSError: the disk is full or not writable; there is no store.
    """
    try:
        with folder.made(ROOT) as partial:
            described = attributes.model_dump(mode="json")
            group = zarr.create_group(partial, zarr_format=3, attributes=described)
            _create_features(group, int(steps.episode_ends[-1]), attributes)
            for name in STEP_ARRAYS:
                _create_filled(group, name, steps)
            _create_starts(group, len(steps.episode_ends), len(attributes.view_names))
            _create_probe(group, probe)
            (partial / COMMITS).mkdir()
    except FileExistsError as error:
        raise StoreError(
            f"{folder}: another process has created a store here meanwhile; run the same command "
            f"again, it goes on with that one or says what differs"
        ) from error


def open_group(folder: Folder, *, writable: bool) -> zarr.Group:
    """Open a store's arrays.

    Raises:
        Exception: one of `UNREADABLE`; there are none, or they are damaged.
    """
    mode: Literal["r+", "r"] = "r+" if writable else "r"
    if isinstance(folder, LocalFolder):
        return zarr.open_group(folder.location, mode=mode, zarr_format=3)
    # obstore is an extra, and without it there is no other folder than a local one.
    from pipeline.features.store.object_arrays import object_arrays  # noqa: PLC0415 - optional

    return zarr.open_group(object_arrays(folder), mode=mode, zarr_format=3)


def open_array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """Open an array; its description is read from the disk each time.

    Raises:
        Exception: one of `UNREADABLE`; it is absent, damaged or something else.
    """
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{name} is no array")
    return array


def read_num_rows(group: zarr.Group) -> int:
    """Return how many control steps a store's state has.

    Raises:
        Exception: one of `UNREADABLE`; its state is absent or has no rows and columns.
    """
    shape = open_array(group, "state").shape
    if len(shape) != len(STEP_ARRAYS["state"]):
        raise ValueError(f"state: expected 2 axes, found shape {list(shape)}")
    return shape[0]


def open_unit_array(
    group: zarr.Group, name: str, rows_and_slots: tuple[int, int], rows_per_unit: int
) -> zarr.Array[Any]:
    """Open `features` or `frame_hash`, of a store with so many rows and slots, and rows a file.

    Raises:
        Exception: one of `UNREADABLE`; it is absent, damaged, or of another shape, dtype or size.
    """
    dtype, axes = UNIT_ARRAYS[name]
    array, shape = open_array(group, name), (*rows_and_slots, *axes)
    if (array.shape, str(array.dtype)) != (shape, dtype):
        raise ValueError(
            f"{name}: expected {dtype} {list(shape)}, found {array.dtype} {list(array.shape)}"
        )
    rows_per_file = (array.shards or array.chunks)[0]
    if rows_per_file != rows_per_unit:
        raise ValueError(f"{name}: expected {rows_per_unit} rows a file, found {rows_per_file}")
    # Without comparing every chunk with the fill value first, which is half the time of writing.
    return array.with_config({"write_empty_chunks": True})


def _create_features(group: zarr.Group, num_rows: int, attributes: StoreAttributes) -> None:
    is_sharded = attributes.rows_per_unit > CHUNK_ROWS
    for name, (dtype, axes) in UNIT_ARRAYS.items():
        is_features = name == "features"
        row = (attributes.num_slots, *axes)
        group.create_array(
            name,
            shape=(num_rows, *row),
            # A unit's hashes are read together, and few: they need no chunks of their own.
            chunks=(CHUNK_ROWS if is_features else attributes.rows_per_unit, *row),
            shards=(attributes.rows_per_unit, *row) if is_features and is_sharded else None,
            dtype=dtype,
            fill_value=float("nan") if is_features else 0,
            compressors=feature_codecs(attributes.codec) if is_features else [Crc32cCodec()],
            dimension_names=("step", "view", "feature")[: 1 + len(row)],
        )


def _create_filled(group: zarr.Group, name: str, steps: Steps) -> None:
    axes, ends, pieces = STEP_ARRAYS[name], steps.episode_ends, steps.pieces(name)
    first, num_rows = next(pieces), int(ends[-1]) if "step" in axes else len(ends)
    array = group.create_array(
        name,
        shape=(num_rows, *first.shape[1:]),
        chunks=(min(PIECE_ROWS, num_rows), *first.shape[1:]),
        dtype=first.dtype,
        fill_value=-1 if first.dtype.kind == "i" else float("nan"),
        compressors=[Crc32cCodec()],
        dimension_names=axes,
    )
    stop = 0
    for piece in chain([first], pieces):
        start, stop = stop, stop + len(piece)
        array[start:stop] = piece
    assert stop == num_rows, f"{name}: {stop} rows, want {num_rows}"


def _create_starts(group: zarr.Group, num_episodes: int, num_views: int) -> None:
    """Create the arrays of start frames; the frames are written when all features are there."""
    frames, episodes = START_ARRAYS
    chosen = spread_evenly(num_episodes, MAX_STARTS)
    shape = (len(chosen), num_views, SIZE, SIZE, 3)
    group.create_array(
        frames,
        shape=shape,
        chunks=shape,
        dtype=np.uint8,
        fill_value=0,
        compressors=[_blosc(np.dtype(np.uint8)), Crc32cCodec()],
        dimension_names=("start", "view", "height", "width", "channel"),
    )
    group.create_array(
        episodes,
        data=chosen,
        chunks=chosen.shape,
        fill_value=-1,
        compressors=[Crc32cCodec()],
        dimension_names=("start",),
    )


def _create_probe(group: zarr.Group, probe: Probe) -> None:
    held = group.create_group(
        PROBE,
        attributes={
            "engine": probe.engine.model_dump(mode="json"),
            "tolerance": probe.tolerance,
            "digest": probe.digest(),
        },
    )
    for name, axes in (
        ("frames", ("frame", "view", "height", "width", "channel")),
        ("features", ("frame", "view", "feature")),
    ):
        values = getattr(probe, name)
        array = held.create_array(
            name,
            shape=values.shape,
            chunks=values.shape,
            dtype=values.dtype,
            fill_value=0,
            compressors=[_blosc(values.dtype), Crc32cCodec()],
            dimension_names=axes,
        )
        array[:] = values


def read_probe(group: zarr.Group) -> Probe:
    """Read a store's probe.

    Raises:
        Exception: one of `UNREADABLE`; it is absent or damaged.
    """
    held = group[PROBE]
    if not isinstance(held, zarr.Group):
        raise ValueError("is no group")
    attributes = dict(held.attrs)
    try:
        engine = EngineRecord.model_validate(attributes["engine"])
    except ValidationError as error:
        raise ValueError(f"no engine record ({error})") from error
    probe = Probe(
        frames=_whole(held, "frames"),
        features=_whole(held, "features"),
        engine=engine,
        tolerance=float(str(attributes["tolerance"])),
    )
    if probe.digest() != attributes["digest"]:
        raise ValueError("its frames and features do not hash to its digest")
    return probe


def _whole(group: zarr.Group, name: str) -> np.ndarray:
    return np.asarray(open_array(group, name)[:])


def _blosc(dtype: np.dtype[Any]) -> BloscCodec:
    """Zstandard after a transposition of bits: what suits half-precision numbers best."""
    return BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=dtype.itemsize)
