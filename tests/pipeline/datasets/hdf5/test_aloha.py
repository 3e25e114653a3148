import io

import h5py
import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.hdf5.aloha import AlohaHdf5Reader
from pipeline.errors import DatasetError, FrameReadError
from tests.pipeline.datasets.format_contract import FormatContract, tiny_frames, tiny_state
from tests.pipeline.datasets.hdf5.aloha_files import (
    ACTION,
    FRONT,
    NUMBERS,
    STATE,
    WRIST,
    edit,
    jpeg,
    open_tiny,
    padded,
    write_compressed,
    write_raw,
)


@pytest.fixture
def root(tmp_path):
    return write_raw(tmp_path, NUMBERS)


class TestRaw(FormatContract):
    view_keys = (FRONT, WRIST)
    state_key, action_key = STATE, ACTION
    fps = None

    def make_reader(self, root):
        return open_tiny(write_raw(root))


class TestJpeg(FormatContract):
    view_keys = (FRONT, WRIST)
    state_key, action_key = STATE, ACTION
    fps = None

    def make_reader(self, root):
        return open_tiny(write_compressed(root))

    def frames(self, episode, view):
        """Decoded from the unpadded file: exact, because one decoder reads both."""
        files = [jpeg(frame).tobytes() for frame in tiny_frames(episode, view)]
        return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])


def test_episodes_are_sorted_by_number_and_named_after_the_place_of_their_file(root):
    reader = open_tiny(root)
    names = [reader.episode_name(episode) for episode in range(2)]
    assert names == [str(root / "episode_9.hdf5"), str(root / "episode_12.hdf5")]


def test_companion_files_are_left_alone_and_other_hdf5_files_are_not_ignored(root):
    others = ("episode_9_features.hdf5", "mirror_episode_9.hdf5", "notes.txt", ".x.partial")
    for name in (*others, "._episode_9.hdf5"):
        (root / name).write_bytes(b"not HDF5")
    assert open_tiny(root).num_episodes == 2
    (root / "episode_x.hdf5").write_bytes(b"not HDF5")
    with pytest.raises(DatasetError, match=r"episode_x\.hdf5: expected the name episode_<i>"):
        open_tiny(root)


def test_a_missing_or_empty_folder_says_what_to_correct(tmp_path):
    with pytest.raises(DatasetError, match=r"found none; correct the path"):
        open_tiny(tmp_path)
    with pytest.raises(DatasetError, match=r"absent: .* found none; correct the path"):
        open_tiny(tmp_path / "absent")


def test_a_missing_camera_lists_the_cameras_of_the_file(root):
    with h5py.File(root / "episode_12.hdf5", "r+") as file:
        file.move(FRONT, "observations/images/cam_high")
    with pytest.raises(DatasetError) as caught:
        open_tiny(root)
    message = str(caught.value)
    assert "episode_12.hdf5" in message
    assert "frames at observations/images/front, found only observations/images/cam_high" in message
    assert "cam_high, observations/images/wrist; correct `key`" in message


@pytest.mark.parametrize(
    ("key", "value", "pattern"),
    [
        ("observations/qpos", None, r"numbers at .*qpos, found only action; correct `key`"),
        ("action", None, r"numbers at action, found only observations/qpos; correct `key`"),
        ("observations", None, r"frames at observations/images/front, found none; correct"),
        (FRONT, np.zeros((5, 0), np.uint8), "expected RGB"),
        (FRONT, np.zeros((5, 6, 8), np.uint16), "expected RGB .*found depth"),
        (FRONT, np.zeros((5, 6, 8, 1), np.uint8), r"expected RGB .*\(5, 6, 8, 1\)"),
        (FRONT, np.zeros((4, 6, 8, 3), np.uint8), r"same number of steps.*'.*front': 4"),
        ("action", np.zeros((4, 3), np.float32), r"same number of steps.*'action': 4"),
        ("action", np.zeros((5, 4), np.float32), r"width 3 of action as .*episode_9.*found 4"),
        ("action", np.zeros((5, 3), complex), r"expected numbers of shape .*found complex128"),
        ("action", np.zeros((5, 0), np.float32), r"action: expected numbers .* \(5, 0\)"),
        (FRONT, h5py.SoftLink(f"/{FRONT}"), r"expected frames at .*/front, found only .*/wrist"),
        (FRONT, h5py.SoftLink("/nowhere"), r"expected frames at .*/front, found only .*/wrist"),
    ],
)
def test_a_file_that_is_not_what_the_manifest_says_is_named(root, key, value, pattern):
    path = edit(root, key, value)
    with pytest.raises(DatasetError, match=pattern) as caught:
        open_tiny(root)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_an_episode_without_steps_is_refused(root):
    for key, shape in ((FRONT, (6, 8, 3)), ("observations/images/wrist", (4, 5, 3))):
        edit(root, key, np.zeros((0, *shape), np.uint8))
    edit(root, "observations/qpos", np.zeros((0, 2), np.float32))
    edit(root, "action", np.zeros((0, 3), np.float32))
    with pytest.raises(DatasetError, match="expected at least one step"):
        open_tiny(root)


def test_a_truncated_file_is_named(root):
    path = root / "episode_9.hdf5"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"episode_9\.hdf5: .* an unreadable one \(.*truncated"):
        open_tiny(root)


def test_a_frame_that_does_not_decompress_is_an_error_and_not_a_blank(root):
    edit(root, FRONT, None)
    path = root / "episode_12.hdf5"
    frames = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
    with h5py.File(path, "r+") as file:
        file.create_dataset(FRONT, data=frames, chunks=(1, 6, 8, 3), compression="gzip")
        place = file[FRONT].id.get_chunk_info(2)
    content = bytearray(path.read_bytes())
    content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    path.write_bytes(content)
    reader = open_tiny(root)
    np.testing.assert_array_equal(reader.frames(1, 0, 2)[0], frames[:2])
    for start, stop in ((2, 3), (0, 5)):
        with pytest.raises(FrameReadError, match=r"_12\.hdf5: .*/front: step 2: .*filter"):
            reader.frames(1, start, stop)


def test_numbers_of_one_axis_and_of_a_mobile_base_are_columns(root):
    for number, episode in zip(NUMBERS, range(2), strict=True):
        with h5py.File(root / f"episode_{number}.hdf5", "r+") as file:
            file["base_action"] = tiny_state(episode)[:, :1] * [1, 10]
            file["gripper"] = tiny_state(episode)[:, 1]
    place = DatasetConfig(root, (FRONT,), ("base_action", "gripper", "base_action"))
    reader = AlohaHdf5Reader(place)
    np.testing.assert_array_equal(reader.numbers(0, "gripper"), tiny_state(0)[:, 1:])
    np.testing.assert_array_equal(reader.numbers(1, "base_action")[:, 1], 10 * tiny_state(1)[:, 0])


def test_numbers_that_do_not_read_are_named(root):
    path = root / "episode_12.hdf5"
    values = np.random.default_rng(0).normal(size=(5, 3))
    edit(root, ACTION, None)
    with h5py.File(path, "r+") as file:
        file.create_dataset(ACTION, data=values, chunks=(5, 3), fletcher32=True)
        place = file[ACTION].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[place.byte_offset] ^= 1
    path.write_bytes(content)
    reader = open_tiny(root)
    with pytest.raises(
        DatasetError,
        match=r"episode_12\.hdf5: action: step 0: expected readable values, found an "
        "unreadable one",
    ):
        reader.numbers(1, ACTION)


def test_a_file_that_is_gone_or_changed_after_opening_gives_no_frames(root):
    reader = open_tiny(root)
    edit(root, FRONT, np.zeros((3, 6, 8, 3), np.uint8))
    with pytest.raises(FrameReadError, match=r"front: .*changed"):
        reader.frames(1, 0, 5)
    reader.close()
    (root / "episode_12.hdf5").unlink()
    with pytest.raises(FrameReadError, match=r"_12\.hdf5: .*/front: step 0: .*found nothing"):
        reader.frames(1, 0, 5)


def test_episodes_that_are_not_wanted_are_not_looked_at(root):
    """A damaged file, and a link to nowhere; both of other episodes."""
    (root / "episode_9.hdf5").write_bytes(b"damaged")
    (root / "episode_10.hdf5").symlink_to("/nowhere")
    place = DatasetConfig(root, (FRONT, WRIST), (STATE, ACTION), keeps=lambda number: number > 10)
    reader = AlohaHdf5Reader(place)
    assert (reader.num_episodes, reader.episode_number(0)) == (1, 12)
    np.testing.assert_array_equal(reader.numbers(0, STATE), tiny_state(1))
    none = DatasetConfig(root, (FRONT,), (STATE,), keeps=lambda number: False)
    with pytest.raises(DatasetError, match="expected at least one episode"):
        AlohaHdf5Reader(none)


def test_a_look_does_not_follow_links_that_leave_the_folder(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "other.hdf5"
    with h5py.File(elsewhere, "w") as file:
        file["secret"] = np.zeros(3)
    (root / "episode_9.hdf5").unlink()
    (root / "episode_9.hdf5").symlink_to(elsewhere)
    assert AlohaHdf5Reader.recognizes(root)  # by its name alone
    with pytest.raises(DatasetError, match="allow_outside"):
        AlohaHdf5Reader.survey(root)


def test_a_file_that_lies_elsewhere_is_read_only_on_request(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "episode_12.hdf5"
    path = root / "episode_12.hdf5"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(DatasetError, match="allow_outside"):
        open_tiny(root)
    assert open_tiny(root, allow_outside=True).episode_length(1) == 5
    path.unlink()
    path.symlink_to(root / "nothing")
    with pytest.raises(DatasetError, match=r"episode_12\.hdf5: .*found nothing"):
        open_tiny(root)


@pytest.mark.parametrize(
    ("row", "pattern"),
    [
        (jpeg(np.zeros((8, 6, 3), np.uint8)), "6x8 pixels as the first frame, found 8x6"),
        (jpeg(tiny_frames(1, "front")[2])[:300], "[Tt]runcated"),
        (np.zeros(4, np.uint8), "complete JPEG or PNG"),
    ],
)
def test_a_compressed_frame_that_is_not_like_the_others_is_named(tmp_path, row, pattern):
    root = write_compressed(tmp_path)
    files = [jpeg(frame) for frame in tiny_frames(1, "front")]
    files[3] = row
    with h5py.File(root / "episode_1.hdf5", "r+") as file:
        del file[FRONT]
        file[FRONT] = padded(files)
    reader = open_tiny(root)
    assert len(reader.frames(1, 0, 3)[0]) == 3
    with pytest.raises(FrameReadError, match=f"episode_1.hdf5: {FRONT}: frame 3: .*{pattern}"):
        reader.frames(1, 2, 5)


@pytest.mark.parametrize(("value", "fps"), [(50, 50.0), (np.float32(30), 30.0), ("fast", None)])
def test_the_rate_is_that_of_the_attribute(root, value, fps):
    with h5py.File(root / "episode_9.hdf5", "r+") as file:
        file.attrs["fps"] = value
    assert open_tiny(root).fps == fps


def test_files_of_two_rates_are_refused(root):
    for number, fps in zip(NUMBERS, (50.0, 30.0), strict=True):
        with h5py.File(root / f"episode_{number}.hdf5", "r+") as file:
            file.attrs["fps"] = fps
    with pytest.raises(DatasetError, match=r"episode_12\.hdf5: expected 50.0 .*found 30.0"):
        open_tiny(root)


def test_a_survey_lists_color_cameras_and_numbers(tmp_path):
    survey = AlohaHdf5Reader.survey(write_compressed(tmp_path))
    assert survey.views == {FRONT: (6, 8), WRIST: (4, 5)}
    assert survey.numbers == {
        ACTION: ("0", "1", "2"),
        STATE: ("0", "1"),
        "observations/effort": ("0", "1"),
        "base_action": ("0", "1"),
    }
    assert survey.fps is None


def test_a_survey_of_raw_frames_passes_links_to_outside(root):
    with h5py.File(root / "episode_9.hdf5", "r+") as file:
        file["observations/images/top"] = h5py.ExternalLink("/nowhere", "x")
        file.attrs["fps"] = 25.0
    survey = AlohaHdf5Reader.survey(root)
    assert survey.views == {FRONT: (6, 8), WRIST: (4, 5)}
    assert survey.fps == 25.0


def test_it_is_recognized_by_its_names_and_observations(root, tmp_path_factory):
    assert AlohaHdf5Reader.recognizes(root)
    (root / "episode_9.hdf5").write_bytes(b"broken")  # opening it then names the file
    assert AlohaHdf5Reader.recognizes(root)
    assert not AlohaHdf5Reader.recognizes(root / "episode_12.hdf5")
    assert not AlohaHdf5Reader.recognizes(root / "absent")
    other = tmp_path_factory.mktemp("other")
    assert not AlohaHdf5Reader.recognizes(other)
    with h5py.File(other / "episode_0.hdf5", "w") as file:
        file["puppet/joints"] = np.zeros(3)
    assert not AlohaHdf5Reader.recognizes(other)
