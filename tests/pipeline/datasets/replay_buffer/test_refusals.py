"""Replay buffers of Diffusion Policy whose headers, links, codecs or zips mean no good."""

import json
import shutil
import zipfile

import numpy as np
import pytest

from pipeline.datasets.base import DatasetPlace
from pipeline.datasets.replay_buffer.reader import DiffusionPolicyZarrReader
from pipeline.errors import DatasetError
from tests.pipeline.datasets.replay_buffer.zarr_files import (
    FRONT,
    header,
    open_buffer,
    tiny_arrays,
    write_replay_buffer,
    zip_folder,
)


@pytest.mark.parametrize("codec", ["imagecodecs_jpeg2k", "imagecodecs_jpegxl"])
def test_a_missing_codec_names_the_package(root, codec):
    header(root, FRONT, compressor={"id": codec, "level": 50})
    with pytest.raises(
        DatasetError, match=rf"codec {codec} .*pip install imagecodecs imagecodecs-"
    ):
        open_buffer(root)
    with pytest.raises(DatasetError, match=f"codec {codec}"):
        open_buffer(zip_folder(root))


@pytest.mark.parametrize("codec", ["somebodys-package", "imagecodecs_evil"])
def test_a_file_names_no_package_to_install(root, codec):
    header(root, FRONT, compressor={"id": codec})
    for look in (open_buffer, DiffusionPolicyZarrReader.survey):
        with pytest.raises(DatasetError, match=f"found the id {codec}; write") as caught:
            look(root)
        assert "install" not in str(caught.value)


def test_pickles_are_never_decoded(root):
    for changes in (
        {"compressor": {"id": "pickle"}},
        {"filters": [{"id": "delta", "dtype": "|u1"}, {"id": "pickle"}]},
        {"dtype": "|O", "filters": [{"id": "pickle"}]},
    ):
        before = (root / FRONT / ".zarray").read_text()
        header(root, FRONT, **changes)
        with pytest.raises(
            DatasetError, match=r"data/img: expected .*(pickle|Zarr v2 for numbers)"
        ):
            open_buffer(root)
        (root / FRONT / ".zarray").write_text(before)
    open_buffer(root)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"shape": [8, 10**9, 10**9, 3]}, "expected frames of 1 to 64000000 pixels"),
        ({"chunks": [10**9, 6, 8, 3]}, "chunks of 1 to"),
        ({"chunks": [0, 6, 8, 3]}, "data/img: expected"),
        ({"shape": "x"}, "expected a header of Zarr v2"),
        ({"dtype": "<M8[s]"}, "expected uint8 or floating-point frames"),
    ],
)
def test_a_header_is_not_trusted(root, changes, pattern):
    header(root, FRONT, **changes)
    with pytest.raises(DatasetError, match=pattern):
        open_buffer(root)


@pytest.mark.parametrize("name", [".zgroup", ".zattrs", "data/img/.zarray", "data/img/.zattrs"])
def test_headers_are_not_read_from_elsewhere(root, tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_bytes((root / name).read_bytes() if (root / name).exists() else b"{}")
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(outside)
    for look in (open_buffer, DiffusionPolicyZarrReader.survey):
        with pytest.raises(DatasetError, match=f"{name}' inside this place, .*allow_outside"):
            look(root)
    open_buffer(root, allow_outside=True)
    (root / name).unlink()
    (root / name).symlink_to("/dev/zero")
    with pytest.raises(DatasetError, match=f"{name}: expected a file of at most"):
        open_buffer(root, allow_outside=True)


def test_a_survey_follows_no_link_out_of_the_place(root, tmp_path):
    shutil.move(root / "data", tmp_path / "elsewhere")
    (root / "data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"inside this place, .*copy the files in"):
        DiffusionPolicyZarrReader.survey(root)


@pytest.mark.parametrize("field", ["shape", "dtype", "chunks", "zarr_format"])
def test_a_header_without_a_field_is_not_called_absent(root, field):
    path = root / FRONT / ".zarray"
    path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != field})
    )
    with pytest.raises(DatasetError, match="data/img: expected a header of Zarr v2") as caught:
        open_buffer(root)
    assert "data/action" not in str(caught.value)


@pytest.mark.parametrize("name", [".zgroup", "data/img/.zarray", "meta/episode_ends/.zarray"])
@pytest.mark.parametrize("text", ["[" * 100_000, "", "{}"])
@pytest.mark.parametrize("is_zip", [False, True])
def test_headers_of_other_json_are_told_in_one_line(root, name, text, is_zip):
    (root / name).write_text(text)
    path = zip_folder(root) if is_zip else root
    for look in (open_buffer, DiffusionPolicyZarrReader.survey):
        if look is not open_buffer and name.startswith("meta"):
            continue  # of which a survey says nothing
        with pytest.raises(DatasetError, match="expected a") as caught:
            look(path)
        assert "\n" not in str(caught.value)


def directory_entry(content: bytes, name: str) -> int:
    """Find a member in the directory at the end of a zip."""
    place = content.index(b"PK\1\2")
    while content[place + 46 :][: len(name)] != name.encode():
        place = content.index(b"PK\1\2", place + 4)
    return place


def encrypt(content: bytearray, name: str, start: int) -> None:
    content[start + 6] |= 1
    content[directory_entry(content, name) + 8] |= 1


def unknown_method(content: bytearray, name: str, start: int) -> None:
    content[start + 8] = content[directory_entry(content, name) + 10] = 99


def damaged_byte(content: bytearray, name: str, start: int) -> None:
    content[start + 30 + len(name) + 10] ^= 1


def no_local_header(content: bytearray, name: str, start: int) -> None:
    content[start] = 0


@pytest.mark.parametrize("harm", [encrypt, unknown_method, damaged_byte, no_local_header])
@pytest.mark.parametrize(
    "name", [".zgroup", "data/img/.zarray", "meta/episode_ends/.zarray", "meta/episode_ends/0"]
)
def test_members_of_a_zip_that_do_not_read_are_named(root, name, harm):
    path = zip_folder(root)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(name).header_offset
    content = bytearray(path.read_bytes())
    harm(content, name, start)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"tiny\.zarr\.zip: ") as caught:
        open_buffer(path)
    assert "\n" not in str(caught.value)
    if name.startswith("data"):
        with pytest.raises(DatasetError, match=r"tiny\.zarr\.zip: "):
            DiffusionPolicyZarrReader.survey(path)


def test_frames_and_rows_that_no_camera_or_robot_has_are_refused(tmp_path):
    """As headers say it: the chunks are small, and all there."""
    arrays = tiny_arrays() | {
        "wide": np.zeros((8, 5000), "u1"),
        "big": np.zeros((8, 1, 1, 3), "u1"),
    }
    root = write_replay_buffer(tmp_path / "tiny.zarr", arrays)
    assert "data/wide" not in DiffusionPolicyZarrReader.survey(root).numbers
    with pytest.raises(DatasetError, match="data/wide: expected at most 4096 numbers a step"):
        DiffusionPolicyZarrReader(DatasetPlace(root, (FRONT,), ("data/wide",)))
    header(root, "data/big", shape=[8, 9000, 9000, 3], chunks=[1, 9000, 9000, 3])
    for row in range(8):
        (root / f"data/big/{row}.0.0.0").write_bytes(b"")
    with pytest.raises(DatasetError, match="data/big: expected frames of 1 to 64000000 pixels"):
        open_buffer(root, ("data/big",))
    header(root, "data/action", shape=[8, 10**12])
    assert "data/action" not in DiffusionPolicyZarrReader.survey(root).numbers


def test_an_episode_of_more_numbers_than_memory_holds_is_refused(root, monkeypatch):
    monkeypatch.setattr("pipeline.datasets.replay_buffer.reader.MAX_NUMBERS", 14)
    with pytest.raises(DatasetError, match=r"data/action: expected at most 14 numbers .* found 15"):
        open_buffer(root)
    open_buffer(root, keeps=lambda number: number == 0)
