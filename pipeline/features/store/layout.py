"""The arrays of a feature store: their shapes, chunks and codecs, in Zarr format 3.

Layout below the store's folder, for N control steps of E episodes, V views in S slots (each view as
recorded, then each view of every augmented variant), states of width D and actions of width A:

    features/<name> [N, S, ...] float16  an array per named feature, one file per unit (units.py),
                                         uncompressed, crc32c
    state [N, D] float32   action [N, A] float32   timestamp [N] float64   episode_ends [E] int64
    frame_hash [N, S] uint64             hash of the decoded pixels of every frame
    start_frames [K, V, 32, 32, 3] uint8   start_episodes [K] int64   see start_frames.py
    probe/                               frames and their features: see identity/probe.py
    bases/<name> float32                 what a feature was fitted to, as a PCA basis
    instructions [K, D] float32          a vector per distinct instruction, if there are any
    commits/000000.json                  one sealed record per unit: its rows and their sha256
    COMPLETE.json                        written last; readers refuse a store without it

Every chunk ends in a crc32c: without it a flipped bit would be read as data.
An absent chunk reads as the fill value without an error, so that features and steps are filled with
NaN or -1.
"""

from collections.abc import Mapping
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
from pipeline.storage.location import on_disk
from pipeline.storage.open import Folder

Codecs = list[BloscCodec | Crc32cCodec]

FEATURES: Final = "features"  # the group with an array per named feature
FRAME_HASH: Final = "frame_hash"
# What zarr and numcodecs raise for damage: ValueError for a wrong checksum, RuntimeError for a
# chunk that does not decompress, TypeError for a codec with an unknown field.
UNREADABLE: Final = (BaseZarrError, ValueError, RuntimeError, OSError, LookupError, TypeError)
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
            frames, episodes = START_ARRAYS
            chosen = spread_evenly(len(steps.episode_ends), MAX_STARTS)
            # The frames are written when all features are there.
            blank = np.zeros((len(chosen), len(attributes.view_names), SIZE, SIZE, 3), np.uint8)
            create_whole(group, frames, blank, ("start", "view", "height", "width", "channel"))
            _create_steps(group, episodes, chosen, ("start",))
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
    from pipeline.features.store.object_arrays import ObjectArrays  # noqa: PLC0415 - optional

    return zarr.open_group(ObjectArrays(folder), mode=mode, zarr_format=3)


def unit_arrays(attributes: StoreAttributes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and axes, after rows and slots, of every array that units are written to."""
    features = attributes.encoder.features
    return {f"{FEATURES}/{spec.name}": (spec.dtype, spec.shape) for spec in features} | {
        FRAME_HASH: ("uint64", ())
    }


def whole_arrays(attributes: StoreAttributes) -> list[str]:
    """Return the name of every array that belongs to no unit, without the probe's."""
    instructions = [INSTRUCTIONS] if attributes.text_encoder else []
    bases = (f"{BASES}/{name}" for name in attributes.fitted)
    return [*STEP_ARRAYS, *START_ARRAYS, *instructions, *bases]


def metadata_names(attributes: StoreAttributes) -> list[str]:
    """Return the name of every zarr.json of a store."""
    features = [f"{FEATURES}/{name}" for name in attributes.encoder.feature_names]
    probe = [f"{PROBE}/{name}" for name in ("frames", FEATURES, *features)]
    groups, arrays = [FEATURES, PROBE, BASES], [*features, FRAME_HASH, *whole_arrays(attributes)]
    return [ROOT, *(f"{node}/{ROOT}" for node in (*groups, *arrays, *probe))]


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


def create_whole(
    group: zarr.Group, name: str, values: np.ndarray, axes: tuple[str, ...] | None = None
) -> None:
    """Create an array of one chunk, with the names of its axes."""
    group.create_array(
        name,
        data=values,
        chunks=values.shape,
        fill_value=0,
        compressors=[_blosc(values.dtype), Crc32cCodec()],
        dimension_names=axes,
    )


def _blosc(dtype: np.dtype[Any]) -> BloscCodec:
    """Zstandard after a transposition of bits: what suits half-precision numbers best."""
    return BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=dtype.itemsize)
