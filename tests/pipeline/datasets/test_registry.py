"""Which layout a folder has, on folders of each."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import h5py
import numpy as np
import pytest
import zarr

from pipeline.datasets.base import DatasetConfig, FormatReader
from pipeline.datasets.registry import FORMATS, FormatName, detect_format, format_class, open_format
from pipeline.errors import DatasetError
from tests.pipeline.datasets.hdf5.aloha_files import ACTION, FRONT, STATE, write_raw


def write_info(root: Path, **content: object) -> None:
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta" / "info.json").write_text(json.dumps(content))


def write_demos(root: Path) -> None:
    with h5py.File(root / "image.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((2, 2))


def write_buffer(root: Path) -> None:
    group = zarr.open_group(root, mode="w", zarr_format=2)
    group.create_array("data/action", data=np.zeros((2, 2), np.float32))
    group.create_array("meta/episode_ends", data=np.array([2]))


def test_every_name_has_a_reader_of_its_own():
    assert set(FORMATS) == set(get_args(FormatName))
    for name in FORMATS:
        assert issubclass(format_class(name), FormatReader)


def test_each_layout_is_recognized_and_no_other(tmp_path):
    places = {name: tmp_path / name for name in FORMATS}
    for place in places.values():
        place.mkdir()
    write_info(places["lerobot_v3"], codebase_version="v3.0", fps=10, features={})
    write_info(places["lerobot_v2"], codebase_version="v2.1", fps=10, features={})
    write_raw(places["aloha_hdf5"])
    write_demos(places["robomimic_hdf5"])
    write_buffer(places["diffusion_policy_zarr"])
    assert {name: detect_format(place) for name, place in places.items()} == {
        name: name for name in FORMATS
    }
    assert detect_format(places["robomimic_hdf5"] / "image.hdf5") == "robomimic_hdf5"
    write_info(places["lerobot_v2"], codebase_version="v2.0", fps=10, features={})
    assert detect_format(places["lerobot_v2"]) == "lerobot_v2"


def test_several_layouts_in_one_place_ask_for_a_word(tmp_path):
    write_raw(tmp_path)
    write_info(tmp_path, codebase_version="v3.0", fps=10, features={})
    with pytest.raises(DatasetError, match=r"lerobot_v3 and aloha_hdf5; write `format`"):
        detect_format(tmp_path)
    place = DatasetConfig(root=tmp_path, view_keys=(FRONT,), number_keys=(STATE, ACTION))
    assert open_format("aloha_hdf5", place).num_episodes == 2


@pytest.mark.parametrize(
    ("info", "found"),
    [
        ({"codebase_version": "v1.6", "fps": 10}, r"expected v2\.1 or v2\.0, found v1\.6"),
        ({"codebase_version": "v4.0"}, r"expected v3\.0, found v4\.0"),
        (
            {"codebase_version": "v3.0", "storage_format": "lance"},
            "storage_format: Input should be 'parquet'",
        ),
        ([1], "neither meta/info.json"),
    ],
)
def test_a_layout_of_the_same_family_that_is_not_read_is_named(tmp_path, info, found):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.raises(DatasetError, match=found) as caught:
        open_format(detect_format(tmp_path), DatasetConfig(tmp_path, (), ()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["notes.txt", "x.hdf5", "meta/info.json", "x.lance"])
def test_foreign_files_are_no_dataset_and_never_an_accident(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"\xff\xfe not what the name says")
    for place in (tmp_path, tmp_path / name):
        with pytest.raises(DatasetError, match=r"expected one of the formats lerobot_v3, "):
            detect_format(place)


def test_a_place_that_is_not_there_says_what_to_correct(tmp_path):
    with pytest.raises(DatasetError, match=r"found nothing; correct the path to it$"):
        detect_format(tmp_path / "absent")


NO_LEROBOT = """
import sys
from pathlib import Path
sys.modules[sys.argv[1]] = None  # as if it were not installed
from pipeline.datasets.registry import detect_format, format_class
from pipeline.errors import DatasetError
for look in (lambda: format_class("lerobot_v3"), lambda: detect_format(Path(sys.argv[2]))):
    try:
        print(look())
    except DatasetError as error:
        print(error)
"""


@pytest.mark.parametrize("package", ["av", "pyarrow"])
def test_without_an_optional_package_other_layouts_read_and_one_line_names_the_extra(
    tmp_path, package
):
    def run(root: Path) -> list[str]:
        command = [sys.executable, "-c", NO_LEROBOT, package, str(root)]
        return subprocess.run(
            command, check=True, capture_output=True, text=True
        ).stdout.splitlines()

    (tmp_path / "aloha").mkdir()
    named, detected = run(write_raw(tmp_path / "aloha"))
    assert package in named
    assert "'.[lerobot]'" in named
    assert detected == "aloha_hdf5"
    write_info(tmp_path / "lerobot", codebase_version="v3.0", fps=10, features={})
    _, detected = run(tmp_path / "lerobot")
    assert "'.[lerobot]'" in detected
