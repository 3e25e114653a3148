"""The kinds of picture that common files hold: each comes out as the RGB that was recorded."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.base import DatasetConfig, FormatReader
from pipeline.datasets.hdf5.aloha import AlohaHdf5Reader
from pipeline.datasets.hdf5.robomimic import RobomimicHdf5Reader
from pipeline.datasets.replay_buffer.reader import DiffusionPolicyZarrReader
from pipeline.errors import FrameReadError
from tests.pipeline.datasets.format_contract import tiny_action, tiny_frames
from tests.pipeline.datasets.replay_buffer.zarr_files import write_replay_buffer


def image(frame: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, kind)
    return buffer.getvalue()


def with_alpha(frames: np.ndarray) -> np.ndarray:
    return np.concatenate([frames, np.full((*frames.shape[:3], 1), 9, frames.dtype)], axis=-1)


def channels_first(frames: np.ndarray) -> np.ndarray:
    return np.moveaxis(frames, -1, 1)


RAW: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "RGBA": with_alpha,
    "channels first": channels_first,
    "RGBA, channels first": lambda frames: channels_first(with_alpha(frames)),
    "float of 0 to 1": lambda frames: (frames / 255).astype(np.float32),
    "half of 0 to 1, channels first": lambda frames: channels_first(frames / 255).astype("f2"),
    "float of 0 to 255": lambda frames: frames.astype(np.float32),
}


def byte_strings(frames: np.ndarray) -> np.ndarray:
    """As RoboTwin keeps them: of the longest's length."""
    return np.array([image(frame) for frame in frames], dtype="S")


def rows_of_varying_length(frames: np.ndarray) -> tuple[list[Any], Any]:
    rows = [np.frombuffer(image(frame), np.uint8) for frame in frames]
    return rows, h5py.vlen_dtype(np.uint8)


def alpha_files(frames: np.ndarray) -> np.ndarray:
    return byte_strings(with_alpha(frames))


FILES: dict[str, Callable[[np.ndarray], Any]] = {
    "byte strings": byte_strings,
    "rows of varying length": rows_of_varying_length,
    "PNG with alpha": alpha_files,
}


def fill(group: h5py.Group, key: str, content: Any) -> None:
    if isinstance(content, tuple):
        rows, dtype = content
        dataset = group.create_dataset(key, (len(rows),), dtype)
        for row, value in enumerate(rows):
            dataset[row] = value
    else:
        group[key] = content


def aloha(root: Path, make: Callable[[np.ndarray], Any]) -> FormatReader:
    for episode in range(2):
        with h5py.File(root / f"episode_{episode}.hdf5", "w") as file:
            fill(file, "observations/images/front", make(tiny_frames(episode, "front")))
            file["action"] = tiny_action(episode)
    return AlohaHdf5Reader(DatasetConfig(root, ("observations/images/front",), ("action",)))


def robomimic(root: Path, make: Callable[[np.ndarray], Any]) -> FormatReader:
    with h5py.File(root / "image.hdf5", "w") as file:
        for episode in range(2):
            demo = file.create_group(f"data/demo_{episode}")
            fill(demo, "obs/front", make(tiny_frames(episode, "front")))
            demo["actions"] = tiny_action(episode)
    return RobomimicHdf5Reader(DatasetConfig(root / "image.hdf5", ("obs/front",), ("actions",)))


def zarr(root: Path, make: Callable[[np.ndarray], Any]) -> FormatReader:
    episodes = range(2)
    arrays = {
        "front": np.concatenate([make(tiny_frames(episode, "front")) for episode in episodes]),
        "action": np.concatenate([tiny_action(episode) for episode in episodes]),
    }
    path = write_replay_buffer(root / "a.zarr", arrays)
    return DiffusionPolicyZarrReader(DatasetConfig(path, ("data/front",), ("data/action",)))


CASES = [
    pytest.param(write, make, id=f"{write.__name__}: {kind}")
    for write in (aloha, robomimic, zarr)
    for kind, make in (RAW | (FILES if write is not zarr else {})).items()
]


@pytest.mark.parametrize(("write", "make"), CASES)
def test_every_kind_of_picture_is_the_rgb_that_was_recorded(tmp_path, write, make):
    reader = write(tmp_path, make)
    for episode, start, stop in [(0, 0, 3), (1, 2, 5), (0, 1, 2)]:
        (frames,) = reader.frames(episode, start, stop)
        assert frames.dtype == np.uint8
        np.testing.assert_array_equal(frames, tiny_frames(episode, "front")[start:stop])
    key = {"aloha": "observations/images/front", "robomimic": "obs/front", "zarr": "data/front"}
    assert reader.frame_size(1, key[write.__name__]) == (6, 8)
    reader.close()


@pytest.mark.parametrize("write", [aloha, robomimic, zarr])
def test_dropped_alpha_is_a_remark(tmp_path, write):
    [remark] = write(tmp_path, with_alpha).facts.remarks
    assert remark.startswith("alpha of ")


@pytest.mark.parametrize("write", [aloha, zarr])
def test_black_frames_do_not_decide_the_scale_and_other_scales_are_refused(tmp_path, write):
    def darkened(frames):
        scaled = (frames / 255).astype(np.float32)
        scaled[:2] = 0
        return scaled

    reader = write(tmp_path, darkened)
    np.testing.assert_array_equal(reader.frames(1, 0, 2)[0], 0)
    np.testing.assert_array_equal(reader.frames(1, 2, 5)[0], tiny_frames(1, "front")[2:])
    reader.close()
    (tmp_path / "b").mkdir()
    reader = write(tmp_path / "b", lambda frames: (frames / 127.5 - 1).astype(np.float32))
    with pytest.raises(FrameReadError, match=r"expected numbers in .0, 1. in frames, found -"):
        reader.frames(0, 0, 3)
    reader.close()
