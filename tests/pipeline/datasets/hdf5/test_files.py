from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import DatasetError
from tests.pipeline.datasets.format_contract import TINY_SIZES, tiny_action, tiny_frames
from tests.pipeline.datasets.hdf5.aloha_files import (
    ACTION,
    FRONT,
    NUMBERS,
    edit,
    open_tiny,
    write_raw,
)


@pytest.fixture
def root(tmp_path):
    return write_raw(tmp_path, NUMBERS)


def reserve(
    root: Path, key: str, num_written: int, shape: tuple[int, ...] | None = None, **layout: object
) -> Path:
    """Reserve space for a dataset of the second file, and write its first steps only."""
    path = root / f"episode_{NUMBERS[1]}.hdf5"
    with h5py.File(path, "r+") as file:
        values = file[key][:num_written]
        shape, dtype = shape or file[key].shape, file[key].dtype
        del file[key]
        dataset = file.create_dataset(key, shape, dtype, **layout)
        if num_written:
            dataset[:num_written] = values
    return path


@pytest.mark.parametrize(
    ("key", "num_written", "layout", "found"),
    [
        (FRONT, 0, {"chunks": (1, 6, 8, 3)}, "0 of 5 chunks"),
        (FRONT, 2, {"chunks": (2, 4, 8, 3)}, "2 of 6 chunks"),  # the last of each axis are partial
        (FRONT, 0, {}, "0 of 720 bytes"),
        ("action", 4, {"chunks": (2, 3)}, "2 of 3 chunks"),
    ],
)
def test_space_that_was_reserved_and_never_filled_is_not_read_as_zeros(
    root, key, num_written, layout, found
):
    path = reserve(root, key, num_written, **layout)
    with pytest.raises(DatasetError) as caught:
        open_tiny(root)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert f"{key}: " in message
    assert f"found {found}" in message
    assert "cut off" in message
    assert "complete, or leave the episode out with `episodes = {" in message


def test_partial_chunks_at_the_edges_are_whole_when_all_are_written(root):
    reserve(root, FRONT, 5, chunks=(2, 4, 8, 3), maxshape=(None, 6, 8, 3))
    reserve(root, "action", 5, chunks=(2, 3), compression="gzip")
    reader = open_tiny(root)
    np.testing.assert_array_equal(reader.frames(1, 0, 5)[0], tiny_frames(1, "front"))
    np.testing.assert_array_equal(reader.numbers(1, ACTION), tiny_action(1))


def test_a_length_that_no_memory_holds_is_refused_before_anything_is_read(root):
    reserve(root, "observations/qpos", 0, (10**11, 2))
    with pytest.raises(DatasetError, match=r"same number of steps.*qpos': 100000000000"):
        open_tiny(root)
    for view, (height, width) in TINY_SIZES.items():
        shape = (10**11, height, width, 3)
        reserve(root, f"observations/images/{view}", 0, shape, chunks=(1000, height, width, 3))
    reserve(root, "action", 0, (10**11, 3))
    with pytest.raises(DatasetError, match=r"front: .*found 0 of 100000000 chunks"):
        open_tiny(root)


def test_data_of_other_files_is_never_drawn_in(root, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.hdf5"
    with h5py.File(secret, "w") as file:
        file["frames"] = tiny_frames(1, "front")
    layout = h5py.VirtualLayout(shape=(5, 6, 8, 3), dtype=np.uint8)
    layout[:] = h5py.VirtualSource(secret, "frames", shape=(5, 6, 8, 3))
    path = edit(root, FRONT, h5py.ExternalLink(str(secret), "frames"))
    with pytest.raises(DatasetError, match="link to another file"):
        open_tiny(root)
    with h5py.File(path, "r+") as file:  # a chain: an internal link to an external one
        file["chain"] = h5py.ExternalLink(str(secret), "frames")
    edit(root, FRONT, h5py.SoftLink("/chain"))
    with pytest.raises(DatasetError, match="link to another file"):
        open_tiny(root)
    with h5py.File(path, "r+") as file:
        del file[FRONT]
        file.create_virtual_dataset(FRONT, layout)
    with pytest.raises(DatasetError, match="link to another file"):
        open_tiny(root)
    with h5py.File(path, "r+") as file:
        del file[FRONT]
        raw = [(str(secret), 0, 5 * 6 * 8 * 3)]
        file.create_dataset(FRONT, (5, 6, 8, 3), np.uint8, external=raw)
    with pytest.raises(DatasetError, match="link to another file"):
        open_tiny(root)


def test_a_link_within_the_file_is_followed(root):
    with h5py.File(root / "episode_12.hdf5", "r+") as file:
        file.move(FRONT, "observations/images/cam_high")
        file[FRONT] = h5py.SoftLink("/observations/images/cam_high")
    reader = open_tiny(root)
    np.testing.assert_array_equal(reader.frames(1, 0, 5)[0], tiny_frames(1, "front"))


@pytest.mark.parametrize("kind", ["u1", "i8", "?", "f2", ">f4", "<f8"])
def test_numbers_of_every_type_are_read(root, kind):
    values = np.arange(15).reshape(5, 3) % 2 if kind == "?" else np.arange(15).reshape(5, 3)
    edit(root, ACTION, values.astype(kind))
    got = open_tiny(root).numbers(1, ACTION)
    assert got.dtype == (np.float32 if kind in ("f2", ">f4") else np.float64)
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("value", [np.array([b"a"] * 5), np.zeros(5, complex), np.zeros((5, 2, 2))])
def test_what_is_no_number_is_refused(root, value):
    edit(root, ACTION, value)
    with pytest.raises(DatasetError, match="action: expected numbers of shape"):
        open_tiny(root)
