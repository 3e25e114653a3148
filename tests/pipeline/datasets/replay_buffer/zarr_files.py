"""Tiny replay buffers of Diffusion Policy, written with zarr as its users do."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.replay_buffer.reader import DiffusionPolicyZarrReader
from tests.pipeline.datasets.format_contract import (
    TINY_LENGTHS,
    TINY_SIZES,
    tiny_action,
    tiny_frames,
    tiny_state,
)

FRONT, WRIST = "data/img", "data/wrist_img"
NUMBERS = ("data/state", "data/action")
TINY_ENDS = tuple(np.cumsum(TINY_LENGTHS).tolist())


def tiny_arrays(image_dtype: str = "u1") -> dict[str, np.ndarray]:
    """Return the tiny episodes one after another, frames as uint8 or as floating point."""
    episodes = range(len(TINY_LENGTHS))
    arrays = {
        key: np.concatenate([tiny_frames(e, view) for e in episodes]).astype(image_dtype)
        for key, view in zip(("img", "wrist_img"), TINY_SIZES, strict=True)
    }
    arrays["state"] = np.concatenate([tiny_state(e) for e in episodes]).astype("f4")
    arrays["action"] = np.concatenate([tiny_action(e) for e in episodes])
    return arrays


def write_replay_buffer(
    root: Path,
    arrays: Mapping[str, np.ndarray],
    ends: tuple[int, ...] | np.ndarray = TINY_ENDS,
    *,
    compressor: Any = "blosc",
    filters: Any = None,
    rows_per_chunk: int = 3,
    separator: str = ".",
) -> Path:
    """Write a folder of the layout that `ReplayBuffer.save_to_path` leaves; pictures compressed.

    Source: real-stanford/diffusion_policy@5ba07ac6, diffusion_policy/common/replay_buffer.py.
    """
    codec = numcodecs.Blosc("zstd", 5, numcodecs.Blosc.BITSHUFFLE)
    codec = codec if compressor == "blosc" else compressor
    group = zarr.open_group(root, mode="w", zarr_format=2)
    for key, values in arrays.items():
        is_picture = values.ndim == 4
        array = group.require_group("data").create_array(
            key,
            shape=values.shape,
            chunks=(rows_per_chunk, *values.shape[1:]) if is_picture else values.shape,
            dtype=values.dtype,
            compressors=codec if is_picture else None,
            filters=filters if is_picture else None,
            chunk_key_encoding={"name": "v2", "separator": separator},
            config={"write_empty_chunks": True},  # as zarr 2 did, with which these were written
        )
        array[:] = values
    values = np.asarray(ends)
    meta = group.require_group("meta")
    array = meta.create_array(
        "episode_ends", shape=values.shape, chunks=values.shape, dtype=values.dtype
    )
    array[:] = values
    return root


def zip_folder(root: Path) -> Path:
    """Pack what is in a folder into `<folder>.zip`, uncompressed, as ZipStore does."""
    path = root.with_name(f"{root.name}.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root))
    return path


def open_buffer(
    root: Path, views: tuple[str, ...] = (FRONT, WRIST), **place: Any
) -> DiffusionPolicyZarrReader:
    return DiffusionPolicyZarrReader(DatasetConfig(root, views, NUMBERS, **place))


def header(root: Path, key: str, **changes: object) -> None:
    """Change fields of an array's header."""
    path = root / key / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
