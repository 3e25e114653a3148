from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.hdf5.robomimic import RobomimicHdf5Reader
from pipeline.errors import DatasetError
from tests.pipeline.datasets.format_contract import (
    TINY_FPS,
    FormatContract,
    tiny_action,
    tiny_frames,
    tiny_state,
)
from tests.pipeline.datasets.hdf5.robomimic_files import (
    ACTION,
    FRONT,
    LIBERO_FRONT,
    LIBERO_STATE,
    LIBERO_WRIST,
    STATE,
    WRIST,
    edit,
    open_tiny,
    write_libero,
    write_robomimic,
)


def open_libero(root: Path) -> RobomimicHdf5Reader:
    place = DatasetConfig(root, (LIBERO_FRONT, LIBERO_WRIST), (LIBERO_STATE, ACTION))
    return RobomimicHdf5Reader(place)


@pytest.fixture
def path(tmp_path):
    """Numbers with a gap, which sorting as text would swap, written in another order."""
    demos = {12: 1, 9: 0}
    return write_robomimic(tmp_path / "image.hdf5", demos, masks={"valid": (12,), "all": (12, 9)})


class TestRobomimic(FormatContract):
    view_keys = (FRONT, WRIST)
    state_key, action_key = STATE, ACTION

    def make_reader(self, root):
        return open_tiny(write_robomimic(root / "image.hdf5", {0: 0, 1: 1}))


class TestRobomimicCompressed(TestRobomimic):
    def make_reader(self, root):
        return open_tiny(write_robomimic(root / "image.hdf5", {0: 0, 1: 1}, compress=True))


class TestLibero(FormatContract):
    """One file a task: the second demonstration is the first of the second file."""

    view_keys = (LIBERO_FRONT, LIBERO_WRIST)
    state_key, action_key = LIBERO_STATE, ACTION

    def make_reader(self, root):
        for episode, task in enumerate(("close_the_drawer", "pick_up_the_bowl")):
            write_libero(root / f"{task}_demo.hdf5", (episode,))
        return open_libero(root)


def test_episodes_are_sorted_by_number_and_named_after_file_and_demonstration(path):
    reader = open_tiny(path)
    assert [reader.episode_number(episode) for episode in range(2)] == [9, 12]
    assert [reader.episode_length(episode) for episode in range(2)] == [3, 5]
    assert reader.episode_name(1) == f"{path}: demo_12"
    np.testing.assert_array_equal(reader.frames(1, 0, 5)[0], tiny_frames(1, "front"))
    np.testing.assert_array_equal(reader.numbers(0, ACTION), tiny_action(0))


def test_subsets_are_those_of_the_mask(path):
    reader = open_tiny(path)
    assert reader.subset("valid") == (12,)
    assert reader.subset("all") == (9, 12)
    with pytest.raises(DatasetError, match=r"image\.hdf5: mask/train: .*subsets are all, valid"):
        reader.subset("train")


@pytest.mark.parametrize(
    ("mask", "pattern"),
    [
        (np.array([9, 12]), "expected names of demonstrations"),
        (np.zeros((1, 2)), "expected names of demonstrations"),
    ],
)
def test_a_mask_that_lists_something_else_is_refused(path, mask, pattern):
    with h5py.File(path, "r+") as file:
        file["mask/odd"] = mask
    with pytest.raises(DatasetError, match=rf"image\.hdf5: mask/odd: .*{pattern}"):
        open_tiny(path).subset("odd")


def test_a_mask_of_strings_of_any_length_is_read(path):
    with h5py.File(path, "r+") as file:
        file["mask/odd"] = ["demo_12"]
    assert open_tiny(path).subset("odd") == (12,)


def test_several_files_are_numbered_through_in_the_order_of_their_names(tmp_path):
    write_robomimic(tmp_path / "b.hdf5", {3: 0}, masks={"valid": (3,)})
    write_robomimic(tmp_path / "a.hdf5", {7: 1, 2: 0}, masks={"valid": (7,)})
    (tmp_path / "notes.txt").write_text("nothing")
    reader = open_tiny(tmp_path)
    assert [reader.episode_number(episode) for episode in range(3)] == [0, 1, 2]
    names = [f"{tmp_path}/a.hdf5: demo_2", f"{tmp_path}/a.hdf5: demo_7"]
    assert [reader.episode_name(episode) for episode in range(2)] == names
    assert reader.subset("valid") == (1, 2)
    for episode, written in ((2, 0), (1, 1), (0, 0)):  # one file open at a time
        got = reader.frames(episode, 0, 3)[1]
        np.testing.assert_array_equal(got, tiny_frames(written, "wrist")[:3])


def test_a_folder_of_one_file_keeps_its_numbers(path):
    assert open_tiny(path.parent).episode_number(1) == 12


def test_frames_are_turned_upright_only_if_the_file_states_opengl(tmp_path):
    """The stored rows are reversed against those that are read, file by file."""
    write_libero(tmp_path / "a.hdf5", (0,), convention="opengl")
    write_libero(tmp_path / "b.hdf5", (0,), convention="opencv")
    write_libero(tmp_path / "c.hdf5", (0,), convention=None)
    with h5py.File(tmp_path / "a.hdf5") as file:
        stored = file[f"data/demo_0/{LIBERO_FRONT}"][:]
    reader = open_libero(tmp_path)
    np.testing.assert_array_equal(reader.frames(0, 0, 3)[0], stored[:, ::-1])
    assert reader.frames(0, 0, 3)[0].flags.c_contiguous
    for episode in range(3):
        np.testing.assert_array_equal(reader.frames(episode, 0, 3)[0], tiny_frames(0, "front"))


@pytest.mark.parametrize(
    ("stated", "is_upside_down"),
    [("OpenGL", True), (np.array([b"OPENGL"]), True), ("OpenCV", False)],
)
def test_a_convention_is_understood_however_it_was_written(tmp_path, stated, is_upside_down):
    path = write_libero(tmp_path / "a.hdf5", (0,), convention=None)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["macros_image_convention"] = stated
    want = tiny_frames(0, "front")
    got = open_libero(path).frames(0, 0, 3)[0]
    np.testing.assert_array_equal(got, want[:, ::-1] if is_upside_down else want)


@pytest.mark.parametrize("stated", ["directx", 1])
def test_an_unknown_convention_is_refused(tmp_path, stated):
    path = write_libero(tmp_path / "a.hdf5", (0,), convention=None)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["macros_image_convention"] = stated
    with pytest.raises(DatasetError, match=r"a\.hdf5: data: macros_image_convention: expected"):
        open_libero(path)


def test_attributes_in_arrays_of_one_element_count(path):
    with h5py.File(path, "r+") as file:
        args = file["data"].attrs["env_args"]
        file["data"].attrs["env_args"] = [args]
        file["data/demo_9"].attrs["success"] = np.array([[0]])
    reader = open_tiny(path)
    assert (reader.fps, reader.label(0).success) == (TINY_FPS, False)


def test_demonstrations_that_are_not_wanted_may_be_damaged(path):
    edit(path, FRONT, np.zeros((4, 6, 8, 3), np.uint8))
    reader = open_tiny(path, keeps=lambda number: number == 9)
    assert (reader.num_episodes, reader.episode_number(0)) == (1, 9)
    np.testing.assert_array_equal(reader.frames(0, 0, 3)[0], tiny_frames(0, "front"))
    assert reader.subset("valid") == (12,)
    with pytest.raises(DatasetError, match=r"expected at least one episode .* none of 2"):
        open_tiny(path, keeps=lambda number: number == 3)


def test_files_without_a_wanted_demonstration_may_be_of_another_kind(tmp_path):
    """The numbers run through all of them all the same."""
    write_robomimic(tmp_path / "a.hdf5", {7: 1, 2: 0})
    write_libero(tmp_path / "b.hdf5", (1,), convention="directx")
    write_robomimic(tmp_path / "c.hdf5", {3: 1}, masks={"valid": (3,)})
    reader = open_tiny(tmp_path, keeps=lambda number: number == 3)
    assert (reader.num_episodes, reader.episode_number(0)) == (1, 3)
    assert reader.episode_name(0) == f"{tmp_path}/c.hdf5: demo_3"
    assert reader.subset("valid") == (3,)


@pytest.mark.parametrize("name", ["image.h5", "image.HDF5", "image.H5"])
def test_other_endings_of_names_are_read_in_folders(path, name):
    path.rename(path.with_name(name))
    (path.parent / "._image.hdf5").write_bytes(b"\0\5\x16\7")  # macOS's notes
    assert RobomimicHdf5Reader.recognizes(path.parent)
    assert RobomimicHdf5Reader.recognizes(path.with_name(name))
    assert open_tiny(path.parent).num_episodes == 2


@pytest.mark.parametrize(
    "env_args", [None, "{", '{"env_kwargs": {}}', '{"env_kwargs": {"control_freq": -20}}']
)
def test_a_rate_that_the_file_does_not_contain_is_none(path, env_args):
    with h5py.File(path, "r+") as file:
        del file["data"].attrs["env_args"]
        if env_args is not None:
            file["data"].attrs["env_args"] = env_args
    assert open_tiny(path).fps is None


def test_a_survey_lists_cameras_numbers_rate_and_environment(path):
    survey = RobomimicHdf5Reader.survey(path)
    assert survey.views == {FRONT: (6, 8), WRIST: (4, 5)}
    assert survey.numbers.keys() == {
        STATE,
        "obs/robot0_gripper_qpos",
        ACTION,
        "states",
        "rewards",
        "dones",
    }
    assert (survey.numbers[ACTION], survey.numbers["rewards"]) == (("0", "1", "2"), ("0",))
    assert survey.fps == TINY_FPS
    assert survey.notes == {"source": "simulated environment Lift"}


def test_a_survey_of_libero_lists_its_own_keys(tmp_path):
    write_libero(tmp_path / "a.hdf5", (1,))
    survey = RobomimicHdf5Reader.survey(tmp_path)
    assert survey.views == {LIBERO_FRONT: (6, 8), LIBERO_WRIST: (4, 5)}
    keys = {LIBERO_STATE, "obs/joint_states", "obs/gripper_states", ACTION, "states"}
    assert survey.numbers.keys() == {*keys, "robot_states", "rewards", "dones"}


def test_it_is_recognized_by_its_demonstrations(path, tmp_path_factory):
    assert RobomimicHdf5Reader.recognizes(path)
    assert RobomimicHdf5Reader.recognizes(path.parent)
    (path.parent / "a.hdf5").write_bytes(b"broken")
    assert RobomimicHdf5Reader.recognizes(path.parent)
    assert not RobomimicHdf5Reader.recognizes(path.parent / "a.hdf5")
    assert not RobomimicHdf5Reader.recognizes(path.parent / "absent")
    other = tmp_path_factory.mktemp("other")
    assert not RobomimicHdf5Reader.recognizes(other)
    with h5py.File(other / "episode_0.hdf5", "w") as file:
        file["observations/qpos"] = tiny_state(0)
        file["data"] = h5py.ExternalLink("/nowhere", "data")
    assert not RobomimicHdf5Reader.recognizes(other)
