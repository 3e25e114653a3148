"""Whole files that do not read: each cause is named with the remedy that fits, in every layout."""

import errno
import fcntl
from pathlib import Path

import h5py
import pytest

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.causes import why_unreadable
from pipeline.datasets.lerobot.v2 import LeRobotV2Reader
from pipeline.datasets.lerobot.v3 import LeRobotV3Reader
from pipeline.datasets.replay_buffer.reader import DiffusionPolicyZarrReader
from pipeline.errors import DatasetError, FrameReadError
from tests.pipeline.datasets.hdf5 import aloha_files, robomimic_files
from tests.pipeline.datasets.lerobot import lerobot_files
from tests.pipeline.datasets.replay_buffer import zarr_files

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
VIEWS, NUMBERS = tuple(lerobot_files.VIDEO_SIZES), ("observation.state", "action")


def read_aloha(root: Path) -> None:
    aloha_files.open_tiny(root).frames(0, 0, 1)


def read_robomimic(root: Path) -> None:
    robomimic_files.open_tiny(root / "image.hdf5").frames(0, 0, 1)


def read_v2(root: Path) -> None:
    LeRobotV2Reader(DatasetConfig(root, VIEWS, NUMBERS)).frames(0, 0, 1)


def read_v3(root: Path) -> None:
    LeRobotV3Reader(DatasetConfig(root, VIEWS, NUMBERS)).frames(0, 0, 1)


def read_zarr(root: Path) -> None:
    views = zarr_files.FRONT, zarr_files.WRIST
    place = DatasetConfig(root / "tiny.zarr", views, ("data/state", "data/action"))
    reader = DiffusionPolicyZarrReader(place)
    reader.frames(0, 0, 1)
    reader.numbers(0, "data/action")


def write_robomimic(root: Path) -> None:
    robomimic_files.write_robomimic(root / "image.hdf5", {0: 0, 1: 1})


def write_zarr(root: Path) -> None:
    zarr_files.write_replay_buffer(root / "tiny.zarr", zarr_files.tiny_arrays())


def write_v2(root: Path) -> None:
    lerobot_files.write_v2(root, lerobot_files.tiny_episodes())


def write_v3(root: Path) -> None:
    lerobot_files.write_v3(root, lerobot_files.tiny_episodes())


FILES = {
    "aloha": (aloha_files.write_raw, read_aloha, "episode_0.hdf5"),
    "robomimic": (write_robomimic, read_robomimic, "image.hdf5"),
    "v2 table": (write_v2, read_v2, "data/chunk-000/episode_000000.parquet"),
    "v2 video": (write_v2, read_v2, f"videos/chunk-000/{VIEWS[0]}/episode_000000.mp4"),
    "v2 index": (write_v2, read_v2, "meta/episodes.jsonl"),
    "v3 index": (write_v3, read_v3, "meta/episodes/chunk-000/file-000.parquet"),
    "v3 table": (write_v3, read_v3, "data/chunk-000/file-000.parquet"),
    "v3 video": (write_v3, read_v3, f"videos/{VIEWS[0]}/chunk-000/file-000.mp4"),
    "zarr frames": (write_zarr, read_zarr, "tiny.zarr/data/img/0.0.0.0"),
    "zarr header": (write_zarr, read_zarr, "tiny.zarr/data/img/.zarray"),
}


def refusal(read, root: Path) -> str:
    with pytest.raises((DatasetError, FrameReadError)) as caught:
        read(root)
    assert "record this" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("write", "read", "name"), FILES.values(), ids=FILES)
def test_a_pointer_of_git_lfs_is_named_as_that_in_every_layout(tmp_path, write, read, name):
    write(tmp_path)
    read(tmp_path)
    (tmp_path / name).write_bytes(POINTER)
    message = refusal(read, tmp_path)
    assert "git lfs pull" in message
    assert name.rpartition("/")[2] in message


@pytest.mark.parametrize("kind", ["aloha", "v3 table", "v3 video"])
def test_an_empty_file_and_a_web_page_are_named_as_those(tmp_path, kind):
    write, read, name = FILES[kind]
    write(tmp_path)
    (tmp_path / name).write_bytes(b"")
    assert "found an empty file" in refusal(read, tmp_path)
    (tmp_path / name).write_bytes(b"<!DOCTYPE html><html>Sign in</html>")
    assert "found a web page; download it again, signed in" in refusal(read, tmp_path)


def test_a_file_that_a_recorder_has_open_is_not_to_be_recorded_again(tmp_path):
    path = aloha_files.write_raw(tmp_path) / "episode_1.hdf5"
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as HDF5 itself does
        assert "locked by another process; close the recorder" in refusal(read_aloha, tmp_path)
    read_aloha(tmp_path)


def test_a_file_that_was_never_closed_names_h5clear(tmp_path):
    aloha_files.write_raw(tmp_path)
    path = tmp_path / "episode_1.hdf5"
    with h5py.File(tmp_path / "open", "w", libver="latest") as file:
        file.swmr_mode = True
        path.write_bytes((tmp_path / "open").read_bytes())  # as a crash leaves it
    assert "run `h5clear -s` on a copy" in refusal(read_aloha, tmp_path)


def test_a_missing_permission_and_a_failing_disk_leave_the_data_alone():
    for number, remedy in [(errno.EACCES, "chmod u+r"), (errno.EIO, "check the disk")]:
        message = why_unreadable(Path("a.hdf5"), OSError(number, "x"), "record it again")
        assert remedy in message
        assert "record" not in message


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ([1.7e9 + step / 10 for step in range(5)], r"frame 0: .* of 1700000\d\d\d.* `timestamp`"),
        ([40.0 + step / 10 for step in range(5)], r"frame 0: .* of 40\.3000 s, .* `timestamp`"),
        ([100.0 * step for step in range(5)], "timestamp: expected seconds, found milliseconds"),
    ],
)
def test_a_clock_of_another_zero_or_unit_is_named_as_that(tmp_path, times, found):
    episodes = lerobot_files.tiny_episodes()
    episodes[1].extra = {"timestamp": times}
    lerobot_files.write_v3(tmp_path, episodes)
    reader = LeRobotV3Reader(DatasetConfig(tmp_path, VIEWS, NUMBERS))
    with pytest.raises(FrameReadError, match=f"episode 1: .*{found}"):
        reader.frames(1, 0, 1)
    reader.close()
