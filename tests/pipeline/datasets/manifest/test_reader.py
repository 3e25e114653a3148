"""From manifests to episodes, on recordings in ACT's layout written with h5py alone."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.datasets.manifest.model import LoadedManifest, Manifest, load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.datasets.manifest.sources import verify_checksums
from pipeline.errors import DatasetError, FrameReadError
from tests.pipeline.datasets.check.clean_files import ENDS, MANIFEST, clean_arrays
from tests.pipeline.datasets.check.clean_files import step as row_of
from tests.pipeline.datasets.format_contract import (
    TINY_FPS,
    TINY_SIZES,
    tiny_action,
    tiny_frames,
    tiny_state,
)
from tests.pipeline.datasets.hdf5 import robomimic_files
from tests.pipeline.datasets.hdf5.aloha_files import write_raw
from tests.pipeline.datasets.replay_buffer.zarr_files import write_replay_buffer


def describe(root: Path, **fields: object) -> LoadedManifest:
    content = {
        "name": "tiny",
        "source": "a test",
        "revision": "1",
        "license": "none",
        "path": ".",
        "fps": TINY_FPS,
        "views": [{"name": v, "key": f"observations/images/{v}"} for v in TINY_SIZES],
        "state": {"key": "/observations/qpos", "units": "halves"},
        "action": {"key": "/action", "units": "quarters"},
    }
    return LoadedManifest(Manifest.from_dict(content | fields), (root,), "tiny.toml")


def describe_several(*sources: tuple[Path, dict[str, object]]) -> LoadedManifest:
    content = describe(Path()).manifest.to_dict()
    content.pop("path")
    content["sources"] = [{"path": str(root), **fields} for root, fields in sources]
    roots = tuple(root for root, _ in sources)
    return LoadedManifest(Manifest.from_dict(content), roots, "tiny.toml")


def set_step(path: Path, key: str, value: float) -> None:
    with h5py.File(path, "r+") as file:
        file[key][1, 1] = value


@pytest.fixture
def root(tmp_path):
    """Episodes 9 and 12: a gap, and different widths as text."""
    (tmp_path / "data").mkdir()
    return write_raw(tmp_path / "data", numbers=(9, 12))


def refusal(manifest: Manifest) -> str:
    with pytest.raises(DatasetError) as caught:
        ManifestReader(manifest)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("tiny.toml: ")
    return message


def test_a_manifest_becomes_an_episode_reader(root):
    reader = ManifestReader(describe(root))
    assert reader.view_names == ("front", "wrist")
    assert reader.fps == TINY_FPS
    assert (reader.num_episodes, reader.source_of, reader.validation) == (2, (0, 0), None)
    assert [reader.episode_length(episode) for episode in range(2)] == [3, 5]
    assert reader.frame_size(1, "wrist") == (4, 5)
    assert reader.frame_drift(1, "wrist") == 0
    assert "episode_12.hdf5" in reader.episode_name(1)
    for episode in range(2):
        for got, view in zip(reader.frames(episode, 1, 3), TINY_SIZES, strict=True):
            np.testing.assert_array_equal(got, tiny_frames(episode, view)[1:3])
        for got, want in (
            (reader.state(episode), tiny_state(episode)),
            (reader.action(episode), tiny_action(episode)),
        ):
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, want)
    reader.close()
    assert len(reader.frames(0, 0, 3)[0]) == 3
    with pytest.raises(FrameReadError, match=r"0\.\.3"):
        reader.frames(0, 0, 4)
    for episode in (-1, 2):
        with pytest.raises(IndexError):
            reader.state(episode)


def test_time_is_that_of_the_files_or_of_the_rate(root):
    # 1e-12 s: float64 rounding of i / fps against a sum of 0.1
    want = [0.0, 0.1, 0.2, 0.3, 0.4]
    np.testing.assert_allclose(ManifestReader(describe(root)).timestamp(1), want, atol=1e-12)


def test_views_come_in_the_order_of_the_manifest(root):
    views = describe(root).manifest.to_dict()["views"][::-1]
    wrist, front = ManifestReader(describe(root, views=views)).frames(1, 0, 5)
    np.testing.assert_array_equal(wrist, tiny_frames(1, "wrist"))
    np.testing.assert_array_equal(front, tiny_frames(1, "front"))


def test_blue_first_is_turned_into_red_first(root):
    for got, view in zip(
        ManifestReader(describe(root, color_order="bgr")).frames(1, 0, 5), TINY_SIZES, strict=True
    ):
        np.testing.assert_array_equal(got, tiny_frames(1, view)[..., [2, 1, 0]])
        assert got.flags.c_contiguous  # torch refuses negative strides


def test_keys_are_joined_in_order_and_columns_taken_from_the_whole(root):
    joined = np.concatenate([tiny_action(1), tiny_state(1)], axis=1)
    keys = ["action", "observations/qpos"]
    reader = ManifestReader(describe(root, state={"key": keys, "units": "x"}))
    np.testing.assert_array_equal(reader.state(1), joined)
    np.testing.assert_array_equal(reader.action(1), tiny_action(1))
    source = {"key": keys, "columns": [4, 0, 3], "units": "x"}
    reader = ManifestReader(describe(root, state=source))
    np.testing.assert_array_equal(reader.state(1), joined[:, [4, 0, 3]])


def test_a_column_that_is_not_there_is_named(root):
    source = {"key": ["action", "observations/qpos"], "columns": [4, 5], "units": "x"}
    message = refusal(describe(root, action=source))
    assert "action.columns: expected columns below 5" in message
    assert "found 5" in message


@pytest.mark.parametrize("shift", [0, 2, 9, -3])
def test_a_shift_gives_each_step_an_earlier_or_later_action(root, shift):
    got = ManifestReader(describe(root, action_shift=shift)).action(1)
    for step in range(5):
        np.testing.assert_array_equal(got[step], tiny_action(1)[min(max(0, step - shift), 4)])
    state = ManifestReader(describe(root, action_shift=shift)).state(1)
    np.testing.assert_array_equal(state, tiny_state(1))


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("observations/qpos", "state", np.nan),
        ("action", "action", -np.inf),
        ("observations/qpos", "state", 1e300),  # overflows float32
    ],
)
def test_numbers_that_are_not_finite_are_named_with_key_step_and_dim(root, key, name, value):
    set_step(root / "episode_12.hdf5", key, value)
    reader = ManifestReader(describe(root))
    getattr(reader, name)(0)
    with pytest.raises(DatasetError) as caught:
        getattr(reader, name)(1)
    message = str(caught.value)
    assert "episode_12.hdf5" in message
    assert f"{key}: expected finite float32 numbers" in message
    assert "at step 1, dim 1 (1 in all)" in message


def test_a_place_of_a_joined_array_is_told_as_the_files_have_it(root):
    set_step(root / "episode_9.hdf5", "observations/qpos", np.nan)
    source = {"key": ["action", "observations/qpos"], "columns": [0, 4], "units": "x"}
    with pytest.raises(DatasetError, match=r"observations/qpos: .* step 1, dim 1 \(1 in all\)"):
        ManifestReader(describe(root, state=source)).state(0)
    untouched = source | {"columns": [0, 3]}  # a column that nobody takes may hold anything
    ManifestReader(describe(root, state=untouched)).state(0)


def test_a_rate_other_than_that_of_the_files_is_refused(root):
    for path in root.iterdir():
        with h5py.File(path, "r+") as file:
            file.attrs["fps"] = 25.0
    message = refusal(describe(root))
    assert "fps: expected 25 " in message
    assert "found 10;" in message
    assert ManifestReader(describe(root, fps=25.0)).fps == 25


@pytest.mark.parametrize("episodes", [{"only": [12]}, {"except": [9]}])
def test_episodes_are_left_out_by_their_number(root, episodes):
    reader = ManifestReader(describe(root, episodes=episodes))
    assert reader.num_episodes == 1
    np.testing.assert_array_equal(reader.state(0), tiny_state(1))


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"cut off")])
@pytest.mark.parametrize("left", [0, 1])
def test_episodes_that_are_left_out_need_not_be_there_or_be_readable(root, harm, left):
    wanted, other = ((9, 12), (12, 9))[left]
    harm(root / f"episode_{other}.hdf5")
    for episodes in ({"only": [wanted]}, {"except": [other]}):
        reader = ManifestReader(describe(root, episodes=episodes))
        assert (reader.num_episodes, reader.episode_number(0)) == (1, wanted)
        np.testing.assert_array_equal(reader.state(0), tiny_state(left))
    assert f"found [{other}]" in refusal(
        describe(root, episodes={"only": [wanted]}, splits={"validation": [other]})
    )


def test_the_width_of_an_episode_that_is_left_out_does_not_count(root):
    with h5py.File(root / "episode_9.hdf5", "r+") as file:
        del file["action"]
        file["action"] = np.zeros((3, 7))
    action = {"key": "action", "columns": [6], "units": "x"}
    message = refusal(describe(root, action=action, episodes={"except": [9]}))
    assert "action.columns: expected columns below 3" in message


def test_episodes_carry_the_numbers_of_their_files(root, tmp_path):
    reader = ManifestReader(describe_several((root, {"episodes": {"only": [12]}}), (root, {})))
    assert [reader.episode_number(episode) for episode in range(3)] == [12, 9, 12]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_time_that_is_not_finite_is_named(tmp_path, value):
    """Such a time is not equal to itself: a store of it would never resume."""
    arrays = clean_arrays()
    arrays["timestamp"][row_of(1, 4)] = value
    write_replay_buffer(tmp_path / "clean.zarr", arrays, ENDS)
    (tmp_path / "clean.toml").write_text(MANIFEST)
    reader = ManifestReader(load_manifest(tmp_path / "clean.toml"))
    assert reader.timestamp(0)[-1] == pytest.approx(1.9)
    with pytest.raises(DatasetError, match=r"episode 1: .* at step 4 \(1 in all\); correct"):
        reader.timestamp(1)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"episodes": {"only": [9, 1]}}, r"episodes.only: .*from 9 to 12\), found \[1\]"),
        ({"episodes": {"only": [1, 2]}}, r"episodes.only: .*from 9 to 12\), found \[1, 2\]"),
        ({"splits": {"validation": [9, 3]}}, r"splits.validation: .*found \[3\]"),
        (
            {"splits": {"validation": [9, 12]}},
            r"splits.validation: expected at least one episode to",
        ),
        (
            {"splits": {"validation": [9]}, "episodes": {"only": [12]}},
            r"splits.validation: .*found \[9\]",
        ),
    ],
)
def test_filters_and_splits_that_do_not_fit_the_files_are_named(root, fields, pattern):
    with pytest.raises(DatasetError, match=pattern):
        ManifestReader(describe(root, **fields))
    refusal(describe(root, **fields))


def test_a_filter_that_leaves_out_all_episodes_is_named(root):
    with pytest.raises(DatasetError, match=r"one episode selected by `episodes`, .* of 2;"):
        ManifestReader(describe(root, episodes={"except": [9, 12]}))


def test_a_split_names_episodes_by_number(root):
    assert ManifestReader(describe(root, splits={"validation": [12]})).validation == (1,)


def test_a_split_names_a_subset_of_the_files(tmp_path):
    """robomimic's mask: `valid` holds demo_1; what the filter leaves out is not held out either."""
    path = robomimic_files.write_robomimic(
        tmp_path / "image.hdf5", {0: 0, 1: 1}, masks={"valid": (1,)}
    )
    loaded = describe(
        path,
        views=[{"name": "front", "key": robomimic_files.FRONT}],
        state={"key": robomimic_files.STATE, "units": "x"},
        action={"key": robomimic_files.ACTION, "units": "x"},
        splits={"validation": "valid"},
    )
    assert ManifestReader(loaded).validation == (1,)
    fields = loaded.manifest.to_dict() | {"episodes": {"only": [0]}}
    assert "none in use" in refusal(describe(loaded.roots[0], **fields))


def test_sources_follow_one_another_each_with_its_filter_and_split(root, tmp_path):
    (tmp_path / "more").mkdir()
    more = write_raw(tmp_path / "more", numbers=(3, 4))
    reader = ManifestReader(
        describe_several(
            (root, {"episodes": {"only": [12]}}),
            (more, {"splits": {"validation": [4]}, "weight": 2.0}),
        )
    )
    assert (reader.num_episodes, reader.source_of, reader.validation) == (3, (0, 1, 1), (2,))
    for episode, written in enumerate((1, 0, 1)):
        np.testing.assert_array_equal(reader.state(episode), tiny_state(written))
        front, _ = reader.frames(episode, 0, 3)
        np.testing.assert_array_equal(front, tiny_frames(written, "front")[:3])
    assert str(root) in reader.episode_name(0)
    assert str(more) in reader.episode_name(2)


def test_sources_of_different_robots_are_refused(root, tmp_path):
    (tmp_path / "more").mkdir()
    more = write_raw(tmp_path / "more")
    for path in more.iterdir():
        with h5py.File(path, "r+") as file:
            action = file["action"][:, :2]
            del file["action"]
            file["action"] = action
    message = refusal(describe_several((root, {}), (more, {})))
    assert "sources[1]: expected action of width 3 as in sources[0], found 2" in message


def test_a_filter_of_a_source_is_named_with_its_number(root):
    message = refusal(describe_several((root, {}), (root, {"episodes": {"only": [5]}})))
    assert "sources[1].episodes.only: " in message


def test_checksums_are_compared_with_the_bytes(root):
    """The oracle is coreutils' sha256sum of three bytes, `abc`."""
    (root / "notes.txt").write_bytes(b"abc")
    right = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    verify_checksums(describe(root))
    verify_checksums(describe(root, checksums={"notes.txt": right}))
    for checksums, pattern in (
        ({"notes.txt": "0" * 64}, r"notes\.txt: expected sha256 0000.*found ba7816bf"),
        ({"absent.txt": right}, r"absent\.txt: expected a file.*found No such file"),
        ({"../secret": right}, r"'\.\./secret' inside this folder"),
    ):
        with pytest.raises(DatasetError, match=pattern):
            verify_checksums(describe(root, checksums=checksums))


def test_the_checksum_of_a_dataset_that_is_one_file_is_found_beside_it(root):
    (root / "notes.txt").write_bytes(b"abc")
    checksums = {"notes.txt": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    verify_checksums(describe(root / "notes.txt", checksums=checksums))
    wrong = dict.fromkeys(checksums, "0" * 64)
    with pytest.raises(DatasetError, match="expected sha256 0000"):
        verify_checksums(describe(root / "notes.txt", checksums=wrong))


def test_a_dataset_that_is_one_linked_file_is_compared_with_its_checksum(root, tmp_path):
    """As a download cache lays it out: `snapshots/x/image.hdf5 -> blobs/0a1b`."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a1b").write_bytes(b"abc")
    link = root / "image.hdf5"
    link.symlink_to(tmp_path / "blobs" / "0a1b")
    right = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    verify_checksums(describe(link, checksums={"image.hdf5": right}))
    with pytest.raises(DatasetError, match="expected sha256 0000"):
        verify_checksums(describe(link, checksums={"image.hdf5": "0" * 64}))
    (root / "other").symlink_to(tmp_path / "blobs" / "0a1b")
    with pytest.raises(DatasetError, match="'other' inside this folder"):
        verify_checksums(describe(link, checksums={"other": right}))
