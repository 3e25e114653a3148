"""robomimic's HDF5: what is refused, with the file, the demonstration and what to do."""

import h5py
import numpy as np
import pytest

from pipeline.datasets.hdf5.robomimic import RobomimicHdf5Reader
from pipeline.datasets.registry import detect_format
from pipeline.errors import DatasetError, FrameReadError
from tests.pipeline.datasets.format_contract import TINY_FPS
from tests.pipeline.datasets.hdf5.robomimic_files import (
    ACTION,
    FRONT,
    STATE,
    WRIST,
    edit,
    open_tiny,
    write_robomimic,
)


@pytest.fixture
def path(tmp_path):
    return write_robomimic(tmp_path / "image.hdf5", {12: 1, 9: 0})


def test_a_file_without_frames_says_how_to_render_them(path):
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            for key in (FRONT, WRIST):
                del demo[key]
    with pytest.raises(DatasetError, match=r"demo_9: .*found none; .*dataset_states_to_obs\.py"):
        open_tiny(path)
    with pytest.raises(DatasetError, match=r"dataset_states_to_obs\.py"):
        RobomimicHdf5Reader.survey(path)
    with h5py.File(path, "r+") as file:  # `demo.hdf5`: no observations at all
        for demo in file["data"].values():
            del demo["obs"]
    with pytest.raises(DatasetError, match=r"dataset_states_to_obs\.py"):
        open_tiny(path)


@pytest.mark.parametrize(
    ("key", "value", "pattern"),
    [
        (FRONT, None, r"frames at obs/agentview_image, found only obs/robot0_eye_in_hand_image;"),
        (
            STATE,
            None,
            r"numbers at obs/robot0_eef_pos, found only obs/robot0_gripper_qpos, actions",
        ),
        (FRONT, np.zeros((5, 6, 8, 1), np.uint8), r"RGB frames .*\(5, 6, 8, 1\); use a color"),
        (FRONT, np.zeros((5, 6, 8), np.uint16), r"RGB frames .*found depth"),
        (FRONT, np.zeros((4, 6, 8, 3), np.uint8), r"same number of steps.*agentview_image': 4"),
        (ACTION, np.zeros((5, 4)), r"width 3 of actions as in .*demo_9, found 4"),
        (FRONT, h5py.SoftLink("/nowhere"), r"expected frames at obs/agentview_image"),
    ],
)
def test_a_demonstration_that_is_not_what_was_asked_for_is_named(path, key, value, pattern):
    edit(path, key, value)
    with pytest.raises(DatasetError, match=pattern) as caught:
        open_tiny(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "demo_12" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_space_that_was_reserved_and_never_filled_is_not_read_as_zeros(path):
    edit(path, FRONT, None)
    with h5py.File(path, "r+") as file:
        file.create_dataset(f"data/demo_12/{FRONT}", (5, 6, 8, 3), np.uint8)
    with pytest.raises(DatasetError, match=r"demo_12: obs/agentview_image: .*0 of 720 bytes"):
        open_tiny(path)


def test_a_frame_that_does_not_decompress_names_demonstration_frame_and_view(tmp_path):
    path = write_robomimic(tmp_path / "image.hdf5", {3: 0, 4: 1})
    frames = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
    key = f"data/demo_4/{FRONT}"
    with h5py.File(path, "r+") as file:
        del file[key]
        file.create_dataset(key, data=frames, chunks=(2, 6, 8, 3), compression="gzip")
        place = file[key].id.get_chunk_info(1)  # frames 2 and 3
    content = bytearray(path.read_bytes())
    content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    path.write_bytes(content)
    reader = open_tiny(path)
    np.testing.assert_array_equal(reader.frames(1, 4, 5)[0], frames[4:])
    with pytest.raises(FrameReadError, match=r"image\.hdf5: demo_4: obs/agentview_image: step 2: "):
        reader.frames(1, 0, 5)


def test_files_of_two_rates_are_refused(tmp_path):
    write_robomimic(tmp_path / "a.hdf5", {0: 0})
    with h5py.File(write_robomimic(tmp_path / "b.hdf5", {0: 0}), "r+") as file:
        file["data"].attrs["env_args"] = '{"env_kwargs": {"control_freq": 20.0}}'
    with pytest.raises(DatasetError, match=rf"b\.hdf5: expected {TINY_FPS} .*found 20\.0"):
        open_tiny(tmp_path)


def test_groups_that_are_no_demonstration_are_refused(path):
    with h5py.File(path, "r+") as file:
        file.copy("data/demo_12", "data/demo_x")
    with pytest.raises(DatasetError, match="expected only demo_<i> in `data`, found 'demo_x'"):
        open_tiny(path)


def test_a_demonstration_that_was_broken_off_before_its_first_step_is_left_out(path):
    """As Isaac Lab keeps an attempt that was reset at once."""
    with h5py.File(path, "r+") as file:
        file["data"].create_group("demo_13").attrs["num_samples"] = 0
    with pytest.raises(
        DatasetError, match=r"demo_13: expected frames at .*, found none; .* leave the ep"
    ):
        open_tiny(path)


def test_a_recording_without_any_demonstration_is_named_as_such(tmp_path):
    path = tmp_path / "a.hdf5"
    for keys in ((), ("data",)):
        with h5py.File(path, "w") as file:
            for key in keys:
                file.create_group(key)
        assert detect_format(path) == "robomimic_hdf5"
        with pytest.raises(DatasetError, match="found none; record again if the recorder"):
            open_tiny(path)


def test_places_without_demonstrations_say_what_to_correct(tmp_path):
    with pytest.raises(DatasetError, match="folder without any; correct the path"):
        open_tiny(tmp_path)
    with pytest.raises(DatasetError, match=r"absent\.hdf5: expected an HDF5 file, found nothing"):
        open_tiny(tmp_path / "absent.hdf5")
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["other"] = 1
    with pytest.raises(DatasetError, match=r"a\.hdf5: expected a group `data`"):
        open_tiny(path)
    with h5py.File(path, "w") as file:
        file.create_group("data")
    with pytest.raises(DatasetError, match=r"a\.hdf5: .* at least one demonstration, found none"):
        open_tiny(path)
    path.write_bytes(b"not HDF5")
    with pytest.raises(DatasetError, match=r"a\.hdf5: .* an unreadable one"):
        open_tiny(path)


def test_a_file_of_the_folder_that_lies_elsewhere_is_read_only_on_request(path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("links")
    (folder / "image.hdf5").symlink_to(path)
    with pytest.raises(DatasetError, match="allow_outside"):
        open_tiny(folder)
    assert open_tiny(folder, allow_outside=True).num_episodes == 2
    with pytest.raises(DatasetError, match="copy the files in"):
        RobomimicHdf5Reader.survey(folder)
    assert RobomimicHdf5Reader.survey(folder / "image.hdf5").fps == TINY_FPS  # named itself
