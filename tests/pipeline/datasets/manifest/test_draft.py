import json
import re
import tomllib
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

import cli.data
from pipeline.datasets.manifest.draft import draft_manifest
from pipeline.datasets.manifest.model import load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import DatasetError, ManifestError
from tests.pipeline.datasets.format_contract import tiny_action, tiny_frames, tiny_state
from tests.pipeline.datasets.hdf5.aloha_files import write_raw
from tests.pipeline.datasets.replay_buffer.zarr_files import (
    tiny_arrays,
    write_replay_buffer,
    zip_folder,
)

BLANK = re.compile(r'^(\w+) = ""', re.MULTILINE)
WORDS = {"fps": "10.0"}


def complete(text: str, **values: str) -> str:
    """Do what the comments ask for: replace each empty string."""
    return BLANK.sub(lambda match: f"{match[1]} = {(WORDS | values)[match[1]]}", text)


def refused_until_complete(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(ManifestError):
        load_manifest(path)
    path.write_text(complete(text))


@pytest.mark.parametrize("is_zip", [False, True])
def test_a_replay_buffer_is_drafted_completed_and_opened(tmp_path, is_zip):
    root = write_replay_buffer(tmp_path / "push-t.zarr", tiny_arrays())
    root = zip_folder(root) if is_zip else root
    text = draft_manifest(root).text
    found = tomllib.loads(text)
    assert found["name"] == "push-t"
    assert found["format"] == "diffusion_policy_zarr"
    assert found["path"] == str(root)
    assert found["fps"] == ""
    assert [(view["name"], view["key"]) for view in found["views"]] == [
        ("img", "data/img"),
        ("wrist_img", "data/wrist_img"),
    ]
    assert found["state"] == {"key": "data/state"}
    assert found["action"] == {"key": "data/action"}
    assert (found["resize"], found["fit"]) == ([256, 256], "stretch")
    assert "# 4x5 pixels" in text
    refused_until_complete(tmp_path / "x.toml", text)
    reader = ManifestReader(load_manifest(tmp_path / "x.toml"))
    np.testing.assert_array_equal(reader.frames(1, 0, 5)[1], tiny_frames(1, "wrist"))
    np.testing.assert_array_equal(reader.state(1), tiny_state(1))
    np.testing.assert_array_equal(reader.action(1), tiny_action(1))


def test_a_folder_of_act_needs_nothing_completed(tmp_path):
    (tmp_path / "fold").mkdir()
    draft = draft_manifest(write_raw(tmp_path / "fold"))
    text = draft.text
    assert not draft.missing
    assert "rate      50 Hz, assumed" in draft.assumed
    found = tomllib.loads(text)
    assert [view["name"] for view in found["views"]] == ["front", "wrist"]
    assert found["state"]["key"] == "observations/qpos"
    assert found["action"]["key"] == "action"
    assert "columns are 0, 1" in text
    assert found["fps"] == 50.0
    (tmp_path / "x.toml").write_text(text)
    reader = ManifestReader(load_manifest(tmp_path / "x.toml"))
    np.testing.assert_array_equal(reader.frames(0, 0, 3)[0], tiny_frames(0, "front"))


def test_robomimics_usual_state_is_joined_of_its_parts(tmp_path):
    with h5py.File(tmp_path / "image.hdf5", "w") as file:
        for demo in range(2):
            group = file.create_group(f"data/demo_{demo}")
            group.attrs["num_samples"] = 3
            group["actions"] = np.zeros((3, 7))
            group["obs/agentview_image"] = np.zeros((3, 256, 256, 3), np.uint8)
            for key, width in (("eef_pos", 3), ("eef_quat", 4), ("gripper_qpos", 2)):
                group[f"obs/robot0_{key}"] = np.zeros((3, width))
        args = {"env_name": "Square", "env_kwargs": {"control_freq": 20}}
        file["data"].attrs["env_args"] = json.dumps(args)
    text = draft_manifest(tmp_path / "image.hdf5").text
    found = tomllib.loads(text)
    assert found["fps"] == 20.0
    assert found["state"]["key"] == [
        f"obs/robot0_{k}" for k in ("eef_pos", "eef_quat", "gripper_qpos")
    ]
    assert found["action"]["key"] == "actions"
    assert "Square" in found["source"]
    assert "resize" not in text  # frames are what the encoder takes
    (tmp_path / "x.toml").write_text(text)
    assert ManifestReader(load_manifest(tmp_path / "x.toml")).state(0).shape == (3, 9)


def test_what_is_not_told_by_names_is_left_to_complete(tmp_path):
    arrays = tiny_arrays()
    arrays["robot0_pose"] = arrays.pop("state")
    arrays["commands"] = arrays.pop("action")
    del arrays["img"]
    draft = draft_manifest(write_replay_buffer(tmp_path / "a.zarr", arrays))
    found = tomllib.loads(draft.text)
    assert (found["state"]["key"], found["action"]["key"]) == ("", "")
    choices = "one or more of data/commands (3), data/robot0_pose (2)"
    rate = "fps (a number, control steps per second)"
    assert draft.missing == (rate, f"state.key ({choices})", f"action.key ({choices})")


def test_names_of_files_cannot_break_out_of_a_comment(tmp_path):
    root = tmp_path / 'a"b\nname = "x'
    root.mkdir()
    write_replay_buffer(root / 'é "q"\n[state]#.zarr', tiny_arrays())
    text = draft_manifest(root / 'é "q"\n[state]#.zarr').text
    found = tomllib.loads(text)
    assert found["path"] == str(root / 'é "q"\n[state]#.zarr')
    assert found["name"] == "q_state"


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="expected one of the formats"):
        draft_manifest(tmp_path)
    with pytest.raises(DatasetError, match="found nothing"):
        draft_manifest(tmp_path / "absent")


def invoke(*words: object):
    return CliRunner().invoke(cli.data.main, list(map(str, words)))


def test_init_prints_or_writes_and_never_replaces(tmp_path):
    root = write_replay_buffer(tmp_path / "a.zarr", tiny_arrays())
    printed = invoke("init", root)
    assert printed.exit_code == 0
    assert printed.stdout == draft_manifest(root).text
    written = invoke("init", root, "--out", tmp_path / "a.toml")
    assert written.exit_code == 0
    assert (tmp_path / "a.toml").read_text() == draft_manifest(root).text
    (tmp_path / "a.toml").write_text("mine")
    again = invoke("init", root, "--out", tmp_path / "a.toml")
    assert again.exit_code == 2
    assert "a.toml: expected a new file" in again.stderr
    assert (tmp_path / "a.toml").read_text() == "mine"
    absent = invoke("init", tmp_path / "absent")
    assert absent.exit_code == 2
    assert "manifest" not in absent.stderr  # there is none yet


def test_a_link_to_a_file_is_drafted_by_its_own_name(tmp_path, monkeypatch):
    """As a download cache lays it out: the name that tells the layout is the link's."""
    blob = zip_folder(write_replay_buffer(tmp_path / "a.zarr", tiny_arrays()))
    (tmp_path / "snapshot").mkdir()
    link = tmp_path / "snapshot" / "push-t.zarr.zip"
    blob.rename(tmp_path / "0a1b")
    link.symlink_to(tmp_path / "0a1b")
    monkeypatch.chdir(tmp_path)
    text = draft_manifest(Path("snapshot/../snapshot/push-t.zarr.zip")).text
    found = tomllib.loads(text)
    assert (found["name"], found["path"]) == ("push-t", str(link))
    (tmp_path / "x.toml").write_text(complete(text))
    np.testing.assert_array_equal(
        ManifestReader(load_manifest(tmp_path / "x.toml")).state(1), tiny_state(1)
    )
