import h5py
import numpy as np
import pytest

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.hdf5.aloha import AlohaHdf5Reader
from pipeline.datasets.hdf5.recording import LIBERO, RecordedEpisode, read_label, write_episode
from pipeline.datasets.hdf5.robomimic import RobomimicHdf5Reader
from pipeline.errors import DatasetError
from tests.pipeline.datasets.format_contract import (
    TINY_FPS,
    TINY_SIZES,
    tiny_action,
    tiny_frames,
    tiny_state,
)

LIBERO_CAMERAS = {"agentview": "agentview", "robot0_eye_in_hand": "eye_in_hand"}


def recorded() -> RecordedEpisode:
    return RecordedEpisode(
        frames={view: tiny_frames(1, view) for view in TINY_SIZES},
        state=tiny_state(1).astype(np.float32),
        action=tiny_action(1).astype(np.float32),
        env="metaworld/reach-v3",
        seed=7,
        fps=TINY_FPS,
    )


def test_a_written_episode_has_the_layout_of_act(tmp_path):
    """Read with h5py as ACT's own loader does (tonyzhaozh/act@42a5e2f, utils.py)."""
    path = tmp_path / "episode_7.hdf5"
    write_episode(path, recorded())
    with h5py.File(path) as file:
        assert bool(file.attrs["sim"]) is True
        assert bool(file.attrs["compress"]) is False
        assert (file.attrs["env"], file.attrs["seed"]) == ("metaworld/reach-v3", 7)
        assert (file.attrs["fps"], list(file.attrs["views"])) == (TINY_FPS, ["front", "wrist"])
        for view in TINY_SIZES:
            frames = file[f"/observations/images/{view}"]
            assert frames.chunks == (1, *TINY_SIZES[view], 3)
            np.testing.assert_array_equal(frames[:], tiny_frames(1, view))
        assert {file[key].dtype for key in ("/observations/qpos", "/action")} == {np.dtype("f4")}
        np.testing.assert_array_equal(file["/observations/qpos"][:], tiny_state(1))
        np.testing.assert_array_equal(file["/action"][:], tiny_action(1))
        # The state rises by 1 a step, at 10 steps a second.
        np.testing.assert_array_equal(file["/observations/qvel"][0], [0, 0])
        np.testing.assert_array_equal(file["/observations/qvel"][1:], np.full((4, 2), 10.0))
    assert read_label(path).views == ("front", "wrist")


def test_a_written_episode_is_read_back_by_the_reader_and_is_the_same_bytes_twice(tmp_path):
    write_episode(tmp_path / "episode_7.hdf5", recorded())
    place = DatasetConfig(tmp_path, ("observations/images/wrist",), ("observations/qpos",))
    reader = AlohaHdf5Reader(place)
    assert (reader.episode_number(0), reader.fps) == (7, TINY_FPS)
    np.testing.assert_array_equal(reader.frames(0, 0, 5)[0], tiny_frames(1, "wrist"))
    np.testing.assert_array_equal(reader.numbers(0, "observations/qpos"), tiny_state(1))
    path = tmp_path / "episode_7.hdf5"
    before, inode = path.read_bytes(), path.stat().st_ino
    write_episode(path, recorded())
    assert path.read_bytes() == before
    assert path.stat().st_ino != inode  # replaced by a rename, never written in place


def test_a_written_episode_of_libero_has_the_layout_of_its_files(tmp_path):
    """Read with h5py as its own script writes it (LIBERO@1952000, scripts/create_dataset.py)."""
    numbers = np.random.default_rng(0)
    views = {view: f"obs/{key}_rgb" for view, key in LIBERO_CAMERAS.items()}
    episode = RecordedEpisode(
        frames={view: numbers.integers(0, 256, (5, 8, 8, 3), np.uint8) for view in views},
        state=numbers.random((5, 8), np.float32),
        action=numbers.random((5, 7), np.float32),
        env="libero/libero_object/0",
        seed=7,
        fps=20.0,
        instruction="pick up the soup",
        layout=LIBERO,
    )
    path = tmp_path / "episode_7.hdf5"
    write_episode(path, episode)
    with h5py.File(path) as file:
        demo = file["data/demo_0"]
        for view, key in views.items():
            np.testing.assert_array_equal(demo[key][:], episode.frames[view][:, ::-1])
        np.testing.assert_array_equal(demo["obs/ee_states"][:], episode.state[:, :6])
        np.testing.assert_array_equal(demo["obs/gripper_states"][:], episode.state[:, 6:])
        np.testing.assert_array_equal(demo["actions"][:], episode.action)
    states = ("obs/ee_states", "obs/gripper_states")
    reader = RobomimicHdf5Reader(DatasetConfig(tmp_path, (*views.values(),), states))
    assert (reader.fps, reader.facts.action_shift, reader.label(0).success) == (20.0, -1, True)
    assert reader.label(0).instruction == "pick up the soup"
    for place, frames in enumerate(episode.frames.values()):
        np.testing.assert_array_equal(reader.frames(0, 0, 5)[place], frames)
    assert read_label(path).views == (*views,)


def test_a_recording_that_fails_half_way_leaves_nothing(tmp_path):
    class DiskFullError(OSError):
        pass

    class Breaks(dict[str, np.ndarray]):
        def items(self):
            yield "front", tiny_frames(1, "front")
            assert [path.name for path in tmp_path.iterdir()] == [".episode_7.hdf5.partial"]
            raise DiskFullError

    episode = recorded()
    object.__setattr__(episode, "frames", Breaks())
    with pytest.raises(DiskFullError):
        write_episode(tmp_path / "episode_7.hdf5", episode)
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_a_label_is_no_recording(tmp_path):
    with h5py.File(tmp_path / "episode_9.hdf5", "w") as file:
        file["action"] = tiny_action(0)
    with pytest.raises(DatasetError, match="no attribute env, seed, views"):
        read_label(tmp_path / "episode_9.hdf5")
