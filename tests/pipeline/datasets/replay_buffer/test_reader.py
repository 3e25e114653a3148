import json
import shutil
import zipfile

import numcodecs
import numpy as np
import pytest
import zarr

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.replay_buffer.reader import DiffusionPolicyZarrReader
from pipeline.errors import DatasetError, FrameReadError
from tests.pipeline.datasets.format_contract import FormatContract, tiny_frames, tiny_state
from tests.pipeline.datasets.replay_buffer.zarr_files import (
    FRONT,
    NUMBERS,
    WRIST,
    header,
    open_buffer,
    tiny_arrays,
    write_replay_buffer,
    zip_folder,
)


class ZarrContract(FormatContract):
    view_keys = (FRONT, WRIST)
    state_key, action_key = NUMBERS
    fps = None


class TestFolder(ZarrContract):
    def make_reader(self, root):
        return open_buffer(write_replay_buffer(root / "tiny.zarr", tiny_arrays()))


class TestZip(ZarrContract):
    def make_reader(self, root):
        return open_buffer(zip_folder(write_replay_buffer(root / "tiny.zarr", tiny_arrays())))


class TestFloatFramesInOneChunkEach(ZarrContract):
    """As Push-T's public file, whose frames are float32."""

    def make_reader(self, root):
        arrays = tiny_arrays("f4")
        codec = numcodecs.Blosc("lz4", 5, numcodecs.Blosc.NOSHUFFLE)
        write_replay_buffer(root / "tiny.zarr", arrays, compressor=codec, rows_per_chunk=1)
        return open_buffer(root / "tiny.zarr")


class TestUncompressedWithNestedChunks(ZarrContract):
    def make_reader(self, root):
        write_replay_buffer(root / "tiny.zarr", tiny_arrays(), compressor=None, separator="/")
        return open_buffer(root / "tiny.zarr")


def test_it_is_recognized_by_its_names(root, tmp_path):
    assert DiffusionPolicyZarrReader.recognizes(root)
    path = zip_folder(root)
    assert DiffusionPolicyZarrReader.recognizes(path)
    renamed = path.rename(tmp_path / "other.zip")
    assert DiffusionPolicyZarrReader.recognizes(renamed)
    foreign = tmp_path / "foreign.zip"
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("a", "b")
    (tmp_path / "text.zip").write_text("no zip")
    zarr.open_group(tmp_path / "store.zarr", mode="w")  # such as our own feature stores
    for other in (foreign, tmp_path, tmp_path / "text.zip", tmp_path / "store.zarr"):
        assert not DiffusionPolicyZarrReader.recognizes(other)
    assert not DiffusionPolicyZarrReader.recognizes(tmp_path / "absent")


def test_the_survey_tells_pictures_from_numbers(tmp_path):
    arrays = tiny_arrays("f4") | {
        "keypoint": np.zeros((8, 9, 2), "f4"),
        "n_contacts": np.zeros(8, "f4"),
    }
    write_replay_buffer(tmp_path / "tiny.zarr", arrays)
    for root in (tmp_path / "tiny.zarr", zip_folder(tmp_path / "tiny.zarr")):
        found = DiffusionPolicyZarrReader.survey(root)
        assert found.fps is None
        assert found.views == {FRONT: (6, 8), WRIST: (4, 5)}
        assert found.numbers == {
            "data/action": ("0", "1", "2"),
            "data/n_contacts": ("0",),
            "data/state": ("0", "1"),
        }


def test_a_clock_in_the_files_is_read(tmp_path):
    seconds = np.array([5.0, 5.1, 5.2, 9.0, 9.1, 9.2, 9.3, 9.4])
    write_replay_buffer(tmp_path / "tiny.zarr", tiny_arrays() | {"timestamp": seconds})
    reader = open_buffer(tmp_path / "tiny.zarr")
    np.testing.assert_array_equal(reader.timestamp(0), seconds[:3] - 5.0)
    np.testing.assert_array_equal(reader.timestamp(1), seconds[3:] - 9.0)


@pytest.mark.parametrize(
    ("value", "found"), [(0.5, "0.5"), (256, "256"), (-1, "-1"), (np.nan, "n")]
)
def test_a_frame_value_that_is_no_level_is_named_with_its_step(tmp_path, value, found):
    arrays = tiny_arrays("f4")
    arrays["img"][3 + 2, 1, 2, 0] = value
    reader = open_buffer(write_replay_buffer(tmp_path / "tiny.zarr", arrays))
    pattern = rf"episode 1: data/img: .*0 to 255 .*, found {found}.* at step 2; store"
    with pytest.raises(FrameReadError, match=pattern):
        reader.frames(1, 1, 5)
    np.testing.assert_array_equal(reader.frames(1, 3, 5)[0], tiny_frames(1, "front")[3:5])


@pytest.mark.parametrize("chunk", ["0.0.0.0", "1.0.0.0"])
def test_a_chunk_that_was_never_written_is_refused_and_not_read_as_black(root, chunk):
    (root / FRONT / chunk).unlink()
    assert not zarr.open_group(root, mode="r")[FRONT][:3].all()  # what zarr says: nothing
    with pytest.raises(DatasetError, match=rf"data/img: .* no chunk {chunk}, .*zeros"):
        open_buffer(root)


def test_a_chunk_absent_in_a_zip_is_refused(root):
    (root / "data/action/0.0").unlink()
    with pytest.raises(DatasetError, match=r"tiny\.zarr\.zip: data/action: .*no chunk 0\.0"):
        open_buffer(zip_folder(root))


def test_a_chunk_that_vanishes_later_is_refused(root):
    reader = open_buffer(root)
    (root / FRONT / "1.0.0.0").unlink()
    with pytest.raises(FrameReadError, match=r"episode 1: data/img: .*chunk data/img/1\.0"):
        reader.frames(1, 0, 2)
    reader.frames(0, 0, 3)


@pytest.mark.parametrize("num_bytes", [20, 60])
@pytest.mark.parametrize("is_zip", [False, True])
def test_a_chunk_that_was_cut_off_is_an_error(tmp_path, num_bytes, is_zip):
    """Also where it does not compress: there Blosc would read what lies behind it in memory."""
    arrays = tiny_arrays()
    arrays["img"] = np.random.default_rng(0).integers(0, 256, arrays["img"].shape, np.uint8)
    root = write_replay_buffer(tmp_path / "tiny.zarr", arrays)
    path = root / FRONT / "1.0.0.0"
    path.write_bytes(path.read_bytes()[:-num_bytes])
    reader = open_buffer(zip_folder(root) if is_zip else root)
    with pytest.raises(
        FrameReadError, match=r"episode 1: data/img: step 0: expected readable values"
    ):
        reader.frames(1, 0, 2)
    path.write_bytes(b"short")
    reader = open_buffer(root)
    with pytest.raises(FrameReadError, match="5 bytes, expected"):
        reader.frames(1, 0, 2)


@pytest.mark.parametrize(
    "codec", [numcodecs.Zlib(1), numcodecs.LZMA(), numcodecs.Zstd(1), numcodecs.LZ4()], ids=str
)
def test_a_chunk_that_was_cut_off_is_an_error_whatever_its_codec(tmp_path, codec):
    root = write_replay_buffer(tmp_path / "tiny.zarr", tiny_arrays(), compressor=codec)
    np.testing.assert_array_equal(open_buffer(root).frames(1, 0, 5)[0], tiny_frames(1, "front"))
    path = root / FRONT / "1.0.0.0"
    for size in (path.stat().st_size - 3, 20):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(FrameReadError, match=r"data/img: .*readable values"):
            open_buffer(root).frames(1, 0, 5)


def test_a_raw_chunk_that_was_cut_off_is_an_error(root):
    path = root / "data/state/0.0"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DatasetError, match=r"data/state: .*readable values"):
        open_buffer(root).numbers(0, "data/state")


@pytest.mark.parametrize(
    ("ends", "pattern"),
    [
        ((3, 3, 8), r"found rows \[3, 3\) for episode 1"),
        ((3, 1, 8), r"found rows \[3, 1\) for episode 1"),
        ((3, 7), "data/img: expected 7 rows, .* found 8"),
        ((3, 9), "data/img: expected 9 rows"),
        (np.array([3.0, 8.0]), "expected whole numbers on one axis"),
    ],
)
def test_ends_that_do_not_fit_are_refused(tmp_path, ends, pattern):
    write_replay_buffer(tmp_path / "tiny.zarr", tiny_arrays(), ends)
    with pytest.raises(DatasetError, match=pattern):
        open_buffer(tmp_path / "tiny.zarr")


@pytest.mark.parametrize(
    ("ends", "left_out"),
    [((3, 3, 8), {1}), ((3, 8, 8), {2}), ((3, 8, 2), {2}), ((3, 8, 10**9), {2})],
)
def test_an_episode_without_rows_matters_only_if_it_is_wanted(tmp_path, ends, left_out):
    root = write_replay_buffer(tmp_path / "tiny.zarr", tiny_arrays(), ends)
    with pytest.raises(DatasetError, match=r"for episode|rows"):
        open_buffer(root)
    reader = open_buffer(root, keeps=lambda number: number not in left_out)
    for episode in range(2):
        for frames, view in zip(reader.frames(episode, 0, 3), ("front", "wrist"), strict=True):
            np.testing.assert_array_equal(frames, tiny_frames(episode, view)[:3])


def test_arrays_of_two_lengths_are_refused_though_the_last_episode_is_left_out(tmp_path):
    arrays = tiny_arrays()
    arrays["img"] = arrays["img"][1:]
    root = write_replay_buffer(tmp_path / "tiny.zarr", arrays)
    with pytest.raises(DatasetError, match=r"expected 7 rows|expected 8 rows"):
        open_buffer(root, keeps=lambda number: number == 0)


def test_keys_that_do_not_fit_are_refused(tmp_path):
    arrays = tiny_arrays() | {
        "depth": np.zeros((8, 4, 5), "u2"),
        "levels16": np.zeros((8, 4, 5, 3), "u2"),
    }
    root = write_replay_buffer(tmp_path / "tiny.zarr", arrays)
    for key, pattern in {
        "data/depth": "found depth, uint16",
        "data/levels16": "found uint16",
        "data/state": "expected RGB frames",
        "data/none": r"expected an array data/none, found data/action, .*data/state",
        "img": "expected an array img, found",
    }.items():
        with pytest.raises(DatasetError, match=pattern):
            open_buffer(root, (key,))
    with pytest.raises(DatasetError, match="expected numbers of shape"):
        DiffusionPolicyZarrReader(DatasetConfig(root, (), (FRONT,)))


def test_links_out_of_the_root_need_the_manifests_word(root, tmp_path):
    outside = tmp_path / "outside"
    shutil.move(root / FRONT, outside)
    (root / FRONT).symlink_to(outside)
    with pytest.raises(DatasetError, match="allow_outside"):
        open_buffer(root)
    np.testing.assert_array_equal(
        open_buffer(root, allow_outside=True).frames(0, 0, 3)[0], tiny_frames(0, "front")
    )


def test_zips_that_do_not_open_or_hold_something_else_are_named(root, tmp_path):
    path = zip_folder(root)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"tiny\.zarr\.zip: .*not a zip"):
        open_buffer(path)
    nested = tmp_path / "nested.zarr.zip"
    with zipfile.ZipFile(nested, "w") as archive:
        archive.write(root / ".zgroup", "tiny.zarr/.zgroup")
    with pytest.raises(DatasetError, match=r"nested\.zarr\.zip: expected .*at its top"):
        open_buffer(nested)


def test_a_damaged_chunk_in_a_zip_is_an_error(root):
    path = zip_folder(root)
    chunk = (root / FRONT / "0.0.0.0").read_bytes()
    content = bytearray(path.read_bytes())
    content[content.index(chunk) + 40] ^= 255
    path.write_bytes(content)
    reader = open_buffer(path)
    with pytest.raises(
        FrameReadError,
        match=r"episode 0: data/img: .*readable values, found "
        ".*CRC",
    ):
        reader.frames(0, 0, 1)


def test_other_folders_and_formats_are_named(root, tmp_path):
    with pytest.raises(DatasetError, match="expected a Zarr v2 replay buffer"):
        open_buffer(tmp_path)
    shutil.rmtree(root / "meta")
    with pytest.raises(DatasetError, match="expected an array meta/episode_ends"):
        open_buffer(root)
    zarr.open_group(tmp_path / "three.zarr", mode="w", zarr_format=3)
    with pytest.raises(DatasetError, match=r"expected a Zarr v2 .*, found format 3"):
        open_buffer(tmp_path / "three.zarr")


@pytest.mark.parametrize("damage", ["absent", "cut off"])
def test_chunks_of_episodes_that_are_not_wanted_need_not_be_there(tmp_path, damage):
    """The first chunk of frames is that of episode 0 alone; the one of the numbers is of both."""
    root = write_replay_buffer(tmp_path / "tiny.zarr", tiny_arrays(), compressor=None)
    path = root / FRONT / "0.0.0.0"
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises((DatasetError, FrameReadError), match=r"data/img: .*episodes = \{except = "):
        open_buffer(root).frames(0, 0, 1)
    reader = open_buffer(root, keeps=lambda number: number == 1)
    assert (reader.num_episodes, reader.episode_number(0), reader.episode_length(0)) == (1, 1, 5)
    assert reader.episode_name(0) == f"{root}: episode 1"
    np.testing.assert_array_equal(reader.frames(0, 0, 5)[0], tiny_frames(1, "front"))
    np.testing.assert_array_equal(reader.numbers(0, "data/state"), tiny_state(1))
    with pytest.raises(IndexError):
        reader.episode_length(1)
    with pytest.raises(DatasetError, match=r"expected at least one episode .* none of 2"):
        open_buffer(root, keeps=lambda number: number > 1)


@pytest.mark.parametrize("is_zip", [False, True])
@pytest.mark.parametrize("text", ["", "{}"])
def test_a_header_that_does_not_read_is_named(root, text, is_zip):
    (root / FRONT / ".zarray").write_text(text)
    for look in (open_buffer, DiffusionPolicyZarrReader.survey):
        with pytest.raises(DatasetError, match=r"data/img/\.zarray: expected") as caught:
            look(zip_folder(root) if is_zip else root)
        assert "\n" not in str(caught.value)


def test_a_header_without_a_field_is_named(root):
    path = root / FRONT / ".zarray"
    path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chunks"})
    )
    with pytest.raises(DatasetError, match=r"data/img/\.zarray: expected"):
        open_buffer(root)


def test_a_missing_codec_names_its_package(root):
    header(root, FRONT, compressor={"id": "imagecodecs_jpegxl", "level": 50})
    with pytest.raises(DatasetError, match=r"imagecodecs_jpegxl.*; .* install .*imagecodecs"):
        open_buffer(root)
