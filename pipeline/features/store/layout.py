"""The arrays of a feature store: their shapes, chunks and codecs, in Zarr format 3.

Every chunk ends in a crc32c: without it a flipped bit would be read as data.
An absent chunk reads as the fill value without an error, so that features and steps are filled with
NaN or -1.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import BaseZarrError

from pipeline.errors import StoreError
from pipeline.features.identity.probe import Probe
from pipeline.features.store.attributes import Codec, StoreAttributes
from pipeline.features.store.records import COMMITS
from pipeline.features.store.start_frames import MAX_STARTS, SIZE, spread_evenly
from pipeline.features.store.steps import STEP_ARRAYS, StepArrays
from pipeline.features.store.units import CHUNK_ROWS
from pipeline.storage.folder import Folder
from pipeline.storage.location import on_disk
from policy.encoders.environment import ComputeEnvironment

Codecs = list[BloscCodec | Crc32cCodec]

FEATURES: Final = "features"  # the group with an array per named feature
FRAME_HASH: Final = "frame_hash"
# What zarr and numcodecs raise for damage: ValueError for a wrong checksum, RuntimeError for a
# chunk that does not decompress, TypeError for a codec with an unknown field.
UNREADABLE: Final = (BaseZarrError, ValueError, RuntimeError, OSError, KeyError, TypeError)
PROBE: Final = "probe"
ROOT: Final = "zarr.json"  # the store exists once this file does
BASES: Final = "bases"  # the group with the array that a feature was fitted to
STEP_CHUNK_ROWS: Final = 65_536  # control steps; about 1 MB of a 4-wide state
START_ARRAYS: Final = ("start_frames", "start_episodes")
INSTRUCTIONS: Final = "instructions"  # the array with a vector per distinct instruction
ROOTS: Final = (ROOT, FEATURES, FRAME_HASH, *STEP_ARRAYS, *START_ARRAYS, PROBE, BASES, INSTRUCTIONS)


def feature_codecs(codec: Codec) -> Codecs:
    """Return the codecs of a feature's chunks."""
    return [Crc32cCodec()] if codec == "none" else [_blosc(np.dtype(np.float16)), Crc32cCodec()]


def is_vacant(folder: Folder) -> bool:
    """Whether a store may be created: the folder is empty, or holds an interrupted creation."""
    return folder.is_vacant(ROOTS[1:])


def create_arrays(
    folder: Folder,
    attributes: StoreAttributes,
    steps: StepArrays,
    probe: Probe,
    bases: Mapping[str, np.ndarray],
) -> None:
    """Create a store in a vacant folder, whole or not at all (StoreError: another process has)."""
    try:
        with folder.made(ROOT) as partial:
            described = attributes.model_dump(mode="json")
            group = zarr.create_group(partial, zarr_format=3, attributes=described)
            _create_unit_arrays(group, int(steps.episode_ends[-1]), attributes)
            for name in STEP_ARRAYS:
                _create_steps(group, name, getattr(steps, name), STEP_ARRAYS[name])
            _create_starts(group, len(steps.episode_ends), len(attributes.view_names))
            _create_probe(group, probe)
            fitted = group.create_group(BASES)
            for name, basis in bases.items():
                create_whole(fitted, name, basis)
            (partial / COMMITS).mkdir()
    except FileExistsError as error:
        raise StoreError(
            f"{folder}: another process has created a store there meanwhile; run the same command "
            f"again to resume that store"
        ) from error


def open_group(folder: Folder, *, writable: bool) -> zarr.Group:
    """Open a store's arrays (one of `UNREADABLE`: there are none, or they are damaged)."""
    mode: Literal["r+", "r"] = "r+" if writable else "r"
    path = on_disk(folder.location)
    if path is not None:
        return zarr.open_group(path, mode=mode, zarr_format=3)
    from pipeline.features.store.object_arrays import object_arrays  # noqa: PLC0415 - optional

    return zarr.open_group(object_arrays(folder), mode=mode, zarr_format=3)


def open_array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """Open an array (one of `UNREADABLE`: it is absent, damaged or something else)."""
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{name} is not an array")
    return array


def read_num_rows(group: zarr.Group) -> int:
    """Return the control steps of a store (one of `UNREADABLE`: its state is not a matrix)."""
    shape = open_array(group, "state").shape
    if len(shape) != len(STEP_ARRAYS["state"]):
        raise ValueError(f"state: expected 2 axes, found shape {list(shape)}")
    return shape[0]


def unit_arrays(attributes: StoreAttributes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and axes, after rows and slots, of every array that units are written to."""
    features = attributes.encoder.features
    return {f"{FEATURES}/{spec.name}": (spec.dtype, spec.shape) for spec in features} | {
        FRAME_HASH: ("uint64", ())
    }


def open_unit_array(
    group: zarr.Group, name: str, attributes: StoreAttributes, num_rows: int
) -> zarr.Array[Any]:
    """Open one of `unit_arrays` (one of `UNREADABLE`: it is not as the attributes describe it)."""
    dtype, axes = unit_arrays(attributes)[name]
    array, shape = open_array(group, name), (num_rows, attributes.num_slots, *axes)
    if (array.shape, str(array.dtype)) != (shape, dtype):
        raise ValueError(
            f"{name}: expected {dtype} {list(shape)}, found {array.dtype} {list(array.shape)}"
        )
    rows_per_file = (array.shards or array.chunks)[0]
    if rows_per_file != attributes.rows_per_unit:
        raise ValueError(
            f"{name}: expected {attributes.rows_per_unit} rows per file, found {rows_per_file}"
        )
    # Without comparing every chunk with the fill value first, which is half the time of writing.
    return array.with_config({"write_empty_chunks": True})


def metadata_names(attributes: StoreAttributes) -> list[str]:
    """Return the name of every zarr.json of a store."""
    features = attributes.encoder.feature_names
    nodes = [
        FEATURES,
        *unit_arrays(attributes),
        *STEP_ARRAYS,
        *START_ARRAYS,
        *(f"{PROBE}{below}" for below in ("", "/frames", f"/{FEATURES}")),
        *(f"{PROBE}/{FEATURES}/{name}" for name in features),
        BASES,
        *(f"{BASES}/{name}" for name in attributes.fitted),
        *([INSTRUCTIONS] if attributes.text_encoder else []),
    ]
    return [ROOT, *(f"{node}/{ROOT}" for node in nodes)]


def _create_unit_arrays(group: zarr.Group, num_rows: int, attributes: StoreAttributes) -> None:
    is_sharded = attributes.rows_per_unit > CHUNK_ROWS
    for name, (dtype, axes) in unit_arrays(attributes).items():
        is_feature = name != FRAME_HASH
        row = (attributes.num_slots, *axes)
        group.create_array(
            name,
            shape=(num_rows, *row),
            # A unit's hashes are read together, and few: they need no chunks of their own.
            chunks=(CHUNK_ROWS if is_feature else attributes.rows_per_unit, *row),
            shards=(attributes.rows_per_unit, *row) if is_feature and is_sharded else None,
            dtype=dtype,
            fill_value=float("nan") if is_feature else 0,
            compressors=feature_codecs(attributes.codec) if is_feature else [Crc32cCodec()],
            dimension_names=("step", "slot", *(f"feature_{axis}" for axis in range(len(axes)))),
        )


def _create_steps(group: zarr.Group, name: str, values: np.ndarray, axes: tuple[str, ...]) -> None:
    group.create_array(
        name,
        data=values,
        chunks=(min(STEP_CHUNK_ROWS, len(values)), *values.shape[1:]),
        fill_value=-1 if values.dtype.kind == "i" else float("nan"),
        compressors=[Crc32cCodec()],
        dimension_names=axes,
    )


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
    _create_steps(group, episodes, chosen, ("start",))


def _create_probe(group: zarr.Group, probe: Probe) -> None:
    held = group.create_group(
        PROBE,
        attributes={
            "environment": probe.environment.model_dump(mode="json"),
            "tolerance": probe.tolerance,
            "digest": probe.digest(),
        },
    )
    create_whole(held, "frames", probe.frames)
    features = held.create_group(FEATURES)
    for name, values in probe.features.items():
        create_whole(features, name, values)


def create_whole(group: zarr.Group, name: str, values: np.ndarray) -> None:
    """Create an array of one chunk."""
    group.create_array(
        name,
        data=values,
        chunks=values.shape,
        fill_value=0,
        compressors=[_blosc(values.dtype), Crc32cCodec()],
    )


def read_probe(group: zarr.Group, features: Iterable[str]) -> Probe:
    """Read the probe of these features (one of `UNREADABLE`: it is absent or damaged)."""
    attributes = dict(group[PROBE].attrs)
    names = {name: f"{PROBE}/{FEATURES}/{name}" for name in features}
    probe = Probe(
        frames=np.asarray(open_array(group, f"{PROBE}/frames")[:]),
        features={name: np.asarray(open_array(group, path)[:]) for name, path in names.items()},
        environment=ComputeEnvironment.model_validate(attributes["environment"]),
        tolerance=float(str(attributes["tolerance"])),
    )
    if probe.digest() != attributes["digest"]:
        raise ValueError("its frames and features differ from its checksum")
    return probe


def _blosc(dtype: np.dtype[Any]) -> BloscCodec:
    """Zstandard after a transposition of bits: what suits half-precision numbers best."""
    return BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=dtype.itemsize)
