from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.datasets.aloha_hdf5 import (
    AlohaHdf5Reader,
    RecordedEpisode,
    read_label,
    write_episode,
)
from pipeline.datasets.manifest import Manifest
from pipeline.datasets.registry import open_reader
from pipeline.errors import DatasetError, FrameReadError
from tests.pipeline.datasets.reader_contract import (
    TINY_FPS,
    TINY_SIZES,
    ReaderContract,
    tiny_action,
    tiny_frames,
    tiny_state,
)

FRONT = "observations/images/front"
# Numbers with a gap, of different widths, so that sorting as text would swap them.
NUMBERS = (9, 12)


def tiny_manifest(root: Path) -> Manifest:
    return Manifest.from_dict(
        {
            "name": "tiny",
            "source": "a test",
            "revision": "1",
            "licence": "none",
            "format": "aloha_hdf5",
            "path": ".",
            "fps": TINY_FPS,
            "views": [{"name": v, "key": f"observations/images/{v}"} for v in TINY_SIZES],
            "state": {"key": "/observations/qpos", "units": "halves"},
            "action": {"key": "/action", "units": "quarters"},
        },
        root=root,
    )


def write_tiny(root: Path) -> None:
    """Write the tiny episodes with h5py alone: float32 in the first file, float64 in the second."""
    for episode, number in enumerate(NUMBERS):
        dtype = (np.float32, np.float64)[episode]
        with h5py.File(root / f"episode_{number}.hdf5", "w") as file:
            for view in TINY_SIZES:
                file[f"observations/images/{view}"] = tiny_frames(episode, view)
            file["observations/qpos"] = tiny_state(episode).astype(dtype)
            file["action"] = tiny_action(episode).astype(dtype)


def edit(root: Path, key: str, value: object) -> Path:
    """Put other content in a place of the second file; None removes it."""
    path = root / f"episode_{NUMBERS[1]}.hdf5"
    with h5py.File(path, "r+") as file:
        del file[key]
        if value is not None:
            file[key] = value
    return path


@pytest.fixture
def root(tmp_path):
    write_tiny(tmp_path)
    return tmp_path


class TestAlohaHdf5(ReaderContract):
    def make_reader(self, root):
        write_tiny(root)
        return open_reader(tiny_manifest(root))


def test_episodes_are_sorted_by_number_and_named_after_the_place_of_their_file(root):
    reader = AlohaHdf5Reader(tiny_manifest(root))
    names = [reader.episode_name(episode) for episode in range(2)]
    assert names == [str(root / "episode_9.hdf5"), str(root / "episode_12.hdf5")]


def test_companion_files_are_left_alone_and_other_hdf5_files_are_not_ignored(root):
    for name in ("episode_9_features.hdf5", "mirror_episode_9.hdf5", "notes.txt", ".x.partial"):
        (root / name).write_bytes(b"not HDF5")
    assert AlohaHdf5Reader(tiny_manifest(root)).num_episodes == 2
    (root / "episode_x.hdf5").write_bytes(b"not HDF5")
    with pytest.raises(DatasetError, match=r"episode_x\.hdf5: expected the name episode_<i>"):
        AlohaHdf5Reader(tiny_manifest(root))


def test_a_missing_or_empty_folder_says_what_to_correct(tmp_path):
    with pytest.raises(DatasetError, match=r"found none; correct `path`"):
        AlohaHdf5Reader(tiny_manifest(tmp_path))
    with pytest.raises(DatasetError, match=r"absent: .* found nothing; correct `path`"):
        AlohaHdf5Reader(tiny_manifest(tmp_path / "absent"))


def test_a_missing_camera_lists_the_cameras_of_the_file(root):
    with h5py.File(root / "episode_12.hdf5", "r+") as file:
        file.move(FRONT, "observations/images/cam_high")
    with pytest.raises(DatasetError) as caught:
        AlohaHdf5Reader(tiny_manifest(root))
    message = str(caught.value)
    assert "episode_12.hdf5" in message
    assert "view front at observations/images/front" in message
    assert "observations/images/cam_high, observations/images/wrist" in message


@pytest.mark.parametrize(
    ("key", "value", "pattern"),
    [
        ("observations/qpos", None, r"expected state at .*qpos, found none; the arrays .*images"),
        ("action", None, r"expected action at "),
        ("observations", None, r"the cameras of this file are none"),
        (FRONT, np.zeros((5, 99), np.uint8), r"JPEG-compressed frames are not read"),
        (FRONT, np.zeros((5, 6, 8, 3), np.float32), r"expected uint8 RGB .*found float32"),
        (FRONT, np.zeros((5, 6, 8, 1), np.uint8), r"expected uint8 RGB .*\(5, 6, 8, 1\)"),
        (FRONT, np.zeros((4, 6, 8, 3), np.uint8), r"same number of steps.*'.*front': 4"),
        ("action", np.zeros((4, 3), np.float32), r"same number of steps.*'/action': 4"),
        ("action", np.zeros((5, 4), np.float32), r"widths \(2, 3\) as in episode_9.* \(2, 4\)"),
        ("action", np.zeros((5, 3), np.int64), r"expected float32 or float64.*found int64"),
        ("action", np.zeros(5, np.float32), r"\(steps, width\), found float32 \(5,\)"),
        ("action", np.zeros((5, 0), np.float32), r"action: .* width of at least 1, .* \(5, 0\)"),
        ("observations/qpos", np.zeros((5, 0)), r"qpos: .* width of at least 1, .* \(5, 0\)"),
        (FRONT, np.zeros((5, 0, 8, 3), np.uint8), r"expected uint8 RGB .*\(5, 0, 8, 3\)"),
        (FRONT, h5py.SoftLink("/nowhere"), r"expected view front at"),
    ],
)
def test_a_file_that_is_not_what_the_manifest_says_is_named(root, key, value, pattern):
    path = edit(root, key, value)
    with pytest.raises(DatasetError, match=pattern) as caught:
        AlohaHdf5Reader(tiny_manifest(root))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_an_episode_without_steps_is_refused(root):
    for key, shape in ((FRONT, (6, 8, 3)), ("observations/images/wrist", (4, 5, 3))):
        edit(root, key, np.zeros((0, *shape), np.uint8))
    edit(root, "observations/qpos", np.zeros((0, 2), np.float32))
    edit(root, "action", np.zeros((0, 3), np.float32))
    with pytest.raises(DatasetError, match="expected at least one step"):
        AlohaHdf5Reader(tiny_manifest(root))


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
        (FRONT, 3, {"chunks": (1, 6, 8, 3), "compression": "gzip"}, "3 of 5 chunks"),
        (FRONT, 2, {"chunks": (2, 4, 8, 3)}, "2 of 6 chunks"),  # the last of each axis are partial
        (FRONT, 0, {}, "0 of 720 bytes"),
        ("observations/images/wrist", 4, {"chunks": (1, 4, 5, 3)}, "4 of 5 chunks"),
        ("observations/qpos", 0, {}, "0 of 80 bytes"),
        ("action", 4, {"chunks": (2, 3)}, "2 of 3 chunks"),
    ],
)
def test_space_that_was_reserved_and_never_filled_is_not_read_as_zeros(
    root, key, num_written, layout, found
):
    path = reserve(root, key, num_written, **layout)
    with pytest.raises(DatasetError) as caught:
        AlohaHdf5Reader(tiny_manifest(root))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert f"{key}: " in message
    assert f"found {found}" in message
    assert "cut off" in message
    assert "record this episode again or remove the file" in message


def test_partial_chunks_at_the_edges_are_whole_when_all_are_written(root):
    reserve(root, FRONT, 5, chunks=(2, 4, 8, 3), maxshape=(None, 6, 8, 3))
    reserve(root, "action", 5, chunks=(2, 3), compression="gzip")
    reader = AlohaHdf5Reader(tiny_manifest(root))
    np.testing.assert_array_equal(reader.frames(1, 0, 5)[0], tiny_frames(1, "front"))
    np.testing.assert_array_equal(reader.action(1), tiny_action(1))


@pytest.mark.parametrize("layout", [{}, {"chunks": True}])
def test_a_length_that_no_memory_holds_is_refused_before_anything_is_read(root, layout):
    reserve(root, "observations/qpos", 0, (10**11, 2), **layout)
    with pytest.raises(DatasetError, match=r"same number of steps.*qpos': 100000000000"):
        AlohaHdf5Reader(tiny_manifest(root))
    for view, (height, width) in TINY_SIZES.items():
        shape = (10**11, height, width, 3)
        reserve(root, f"observations/images/{view}", 0, shape, chunks=(1000, height, width, 3))
    reserve(root, "action", 0, (10**11, 3), **layout)
    with pytest.raises(DatasetError, match=r"front: .*found 0 of 100000000 chunks"):
        AlohaHdf5Reader(tiny_manifest(root))


def test_data_of_other_files_is_never_drawn_in(root, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.hdf5"
    with h5py.File(secret, "w") as file:
        file["frames"] = tiny_frames(1, "front")
    layout = h5py.VirtualLayout(shape=(5, 6, 8, 3), dtype=np.uint8)
    layout[:] = h5py.VirtualSource(secret, "frames", shape=(5, 6, 8, 3))
    path = edit(root, FRONT, h5py.ExternalLink(str(secret), "frames"))
    with pytest.raises(DatasetError, match="link to another file"):
        AlohaHdf5Reader(tiny_manifest(root))
    with h5py.File(path, "r+") as file:  # a chain: an internal link to an external one
        file["chain"] = h5py.ExternalLink(str(secret), "frames")
    edit(root, FRONT, h5py.SoftLink("/chain"))
    with pytest.raises(DatasetError, match="link to another file"):
        AlohaHdf5Reader(tiny_manifest(root))
    with h5py.File(path, "r+") as file:
        del file[FRONT]
        file.create_virtual_dataset(FRONT, layout)
    with pytest.raises(DatasetError, match="link to another file"):
        AlohaHdf5Reader(tiny_manifest(root))
    with h5py.File(path, "r+") as file:
        del file[FRONT]
        raw = [(str(secret), 0, 5 * 6 * 8 * 3)]
        file.create_dataset(FRONT, (5, 6, 8, 3), np.uint8, external=raw)
    with pytest.raises(DatasetError, match="link to another file"):
        AlohaHdf5Reader(tiny_manifest(root))


def test_a_link_within_the_file_is_followed(root):
    with h5py.File(root / "episode_12.hdf5", "r+") as file:
        file.move(FRONT, "observations/images/cam_high")
        file[FRONT] = h5py.SoftLink("/observations/images/cam_high")
    reader = AlohaHdf5Reader(tiny_manifest(root))
    np.testing.assert_array_equal(reader.frames(1, 0, 5)[0], tiny_frames(1, "front"))


def test_a_truncated_file_is_named(root):
    path = root / "episode_9.hdf5"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"episode_9\.hdf5: .* does not open \(.*truncated"):
        AlohaHdf5Reader(tiny_manifest(root))


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])  # the last overflows float32
@pytest.mark.parametrize(("key", "name"), [("observations/qpos", "state"), ("action", "action")])
def test_numbers_that_are_not_finite_are_named_with_file_step_and_dim(root, key, name, value):
    array = tiny_state(1) if name == "state" else tiny_action(1)
    array[3, 1] = value
    edit(root, key, array)
    reader = AlohaHdf5Reader(tiny_manifest(root))
    with pytest.raises(DatasetError, match=rf"episode_12\.hdf5: /{key}: .*step 3, dim 1"):
        getattr(reader, name)(1)
    getattr(reader, name)(0)


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
    reader = AlohaHdf5Reader(tiny_manifest(root))
    np.testing.assert_array_equal(reader.frames(1, 0, 2)[0], frames[:2])
    with pytest.raises(FrameReadError, match=r"episode_12\.hdf5: .*\[2, 3\) of view front"):
        reader.frames(1, 2, 3)


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
    reader = AlohaHdf5Reader(tiny_manifest(tmp_path))
    np.testing.assert_array_equal(reader.frames(0, 0, 5)[1], tiny_frames(1, "wrist"))
    path = tmp_path / "episode_7.hdf5"
    before, inode = path.read_bytes(), path.stat().st_ino
    write_episode(path, recorded())
    assert path.read_bytes() == before
    assert path.stat().st_ino != inode  # replaced by a rename, never written in place


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


def test_a_file_without_a_label_is_no_recording(root):
    with pytest.raises(DatasetError, match="no attribute env, seed, views"):
        read_label(root / "episode_9.hdf5")
