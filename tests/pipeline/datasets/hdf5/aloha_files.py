"""Tiny recordings in the layout of ACT and ALOHA, written with h5py and Pillow as users do."""

import io
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.hdf5.aloha import AlohaHdf5Reader
from tests.pipeline.datasets.format_contract import TINY_SIZES, tiny_action, tiny_frames, tiny_state

FRONT, WRIST = (f"observations/images/{view}" for view in TINY_SIZES)
STATE, ACTION = "observations/qpos", "action"
# Numbers with a gap, of different widths, so that sorting as text would swap them.
NUMBERS = (9, 12)


def write_raw(root: Path, numbers: tuple[int, int] = (0, 1)) -> Path:
    """Write the tiny episodes: float32 in the first file, float64 in the second."""
    for episode, number in enumerate(numbers):
        dtype = (np.float32, np.float64)[episode]
        with h5py.File(root / f"episode_{number}.hdf5", "w") as file:
            for view in TINY_SIZES:
                file[f"observations/images/{view}"] = tiny_frames(episode, view)
            file[STATE] = tiny_state(episode).astype(dtype)
            file[ACTION] = tiny_action(episode).astype(dtype)
    return root


def jpeg(frame: np.ndarray) -> np.ndarray:
    """Compress as act-plus-plus does: quality 50."""
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "JPEG", quality=50)
    return np.frombuffer(content.getvalue(), np.uint8)


def padded(files: list[np.ndarray]) -> np.ndarray:
    """Return (t, bytes of the longest), padded with zeros at the end."""
    rows = np.zeros((len(files), max(map(len, files))), np.uint8)
    for row, file in zip(rows, files, strict=True):
        row[: len(file)] = file
    return rows


def write_compressed(root: Path) -> Path:
    """Write the tiny episodes as MarkFzp/act-plus-plus@329a237, compress_data.py lays them out.

    With `effort`, `base_action`, a depth camera and no attribute `sim`.
    """
    write_raw(root)
    for episode in range(2):
        with h5py.File(root / f"episode_{episode}.hdf5", "r+") as file:
            lengths = []
            for view in TINY_SIZES:
                files = [jpeg(frame) for frame in tiny_frames(episode, view)]
                assert len({len(file) for file in files}) > 1, "nothing would be padded"
                lengths.append([len(file) for file in files])
                del file[f"observations/images/{view}"]
                file[f"observations/images/{view}"] = padded(files)
            num_steps = len(lengths[0])
            file["observations/images/front_depth"] = np.zeros((num_steps, 6, 8), np.uint16)
            file["observations/images/wrist_depth"] = np.zeros((num_steps, 99), np.uint8)
            file["observations/effort"] = np.zeros((num_steps, 2), np.float32)
            file["base_action"] = np.zeros((num_steps, 2), np.float32)
            file["compress_len"] = np.array(lengths, np.float32)
            file.attrs["compress"] = True
    return root


def open_tiny(root: Path, *, allow_outside: bool = False) -> AlohaHdf5Reader:
    return AlohaHdf5Reader(DatasetConfig(root, (FRONT, WRIST), (STATE, ACTION), allow_outside))


def edit(root: Path, key: str, value: object) -> Path:
    """Put other content in a place of the second file; None removes it."""
    path = root / f"episode_{NUMBERS[1]}.hdf5"
    with h5py.File(path, "r+") as file:
        del file[key]
        if value is not None:
            file[key] = value
    return path
