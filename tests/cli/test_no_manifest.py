"""A dataset's folder instead of a manifest: what is assumed, said, written and refused."""

import json
import tomllib
from pathlib import Path

import pytest

from pipeline.features.store.feature_store import FeatureStore
from tests.cli.test_commands import invoke, refusal
from tests.pipeline.datasets.hdf5.aloha_files import write_raw
from tests.pipeline.datasets.hdf5.robomimic_files import write_robomimic
from tests.pipeline.datasets.lerobot.lerobot_files import tiny_episodes, write_v3
from tests.pipeline.datasets.replay_buffer.zarr_files import tiny_arrays, write_replay_buffer
from tests.tower import tiny_tower


def aloha(root: Path) -> Path:
    root.mkdir()
    return write_raw(root)


LAYOUTS = {
    "lerobot": lambda root: write_v3(root, tiny_episodes()),
    "aloha": aloha,
    "robomimic": lambda root: write_robomimic(root.with_suffix(".hdf5"), {0: 0, 1: 1}),
}


def embed(data: object, store: Path, *words: object):
    return invoke("vla-embed", data, "--store", store, "--encoder", tiny_tower(), *words)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_is_embedded_and_the_manifest_of_it_gives_the_same_store(tmp_path, layout, caplog):
    data, store = LAYOUTS[layout](tmp_path / "data"), tmp_path / "s.zarr"
    result = embed(data, store)
    assert result.exit_code == 0, result.output
    manifest = tmp_path / "s.toml"
    assert tomllib.loads(manifest.read_text())["resize"] == [256, 256]
    assert f"wrote {store}; next: vla-train {store} --preset proj96 --out" in result.stdout
    assert "embedding 2 episodes, 8 steps x 2 views" in caplog.text
    for said in ("no manifest was passed", "resized to 256x256", f"edit {manifest}"):
        assert said in caplog.text
    assert embed(data, store).exit_code == 0  # resumes
    assert embed(manifest, tmp_path / "again.zarr").exit_code == 0
    assert not (tmp_path / "again.toml").exists()
    digests = {FeatureStore.open(tmp_path / f"{name}.zarr").digest() for name in ("s", "again")}
    assert len(digests) == 1


def test_another_manifest_next_to_the_store_is_kept(tmp_path):
    data, manifest = aloha(tmp_path / "data"), tmp_path / "s.toml"
    manifest.write_text("mine = 1\n")
    said = refusal("vla-embed", data, "--store", tmp_path / "s.zarr", "--encoder", tiny_tower())
    assert f"run `vla-embed {manifest} --store {tmp_path / 's.zarr'}`" in said
    assert manifest.read_text() == "mine = 1\n"


def test_what_the_files_do_not_tell_is_listed_in_one_line(tmp_path):
    arrays = tiny_arrays()
    arrays["pose"] = arrays.pop("state")
    arrays["speed"] = arrays["pose"]
    data = write_replay_buffer(tmp_path / "a.zarr", arrays)
    said = refusal("vla-embed", data, "--store", tmp_path / "s.zarr")
    assert "fps (a number" in said
    assert "state.key (one or more of data/action (3), data/pose (2), data/speed (2))" in said
    assert f"vla-data init {data} --out {tmp_path / 's.toml'}" in said
    assert not list(tmp_path.glob("s.*"))


def test_episodes_are_the_first_ones_or_a_list(tmp_path):
    data = aloha(tmp_path / "data")
    for name, words, only in (("a", "1", [0]), ("b", "0-0,1", [0, 1])):
        assert embed(data, tmp_path / f"{name}.zarr", "--episodes", words).exit_code == 0
        written = tomllib.loads((tmp_path / f"{name}.toml").read_text())
        assert written["episodes"] == {"only": only}
    words = ("vla-embed", data, "--store", tmp_path / "c.zarr", "--episodes")
    for wrong in ("one", "0-", "1-0", "1-0,1"):
        assert "expected 10 for the first ten" in refusal(*words, wrong)
    assert "found 2 (1 such in all)" in refusal(*words, "1-2")
    assert "write `episodes =" in refusal(
        "vla-embed", tmp_path / "a.toml", "--store", tmp_path / "c.zarr", "--episodes", "1"
    )


def test_a_choice_of_episodes_is_never_lost_with_metadata_that_do_not_read(tmp_path):
    """A manifest drafted without the choice would be one of all episodes."""
    data = LAYOUTS["lerobot"](tmp_path / "data")
    info = json.loads((data / "meta/info.json").read_text())
    info["features"]["next.success"] = {"dtype": "bool", "shape": [1]}  # of no file's columns
    (data / "meta/info.json").write_text(json.dumps(info))
    words = ("vla-embed", data, "--store", tmp_path / "s.zarr", "--episodes", "1")
    assert "next.success" in refusal(*words)
    assert not list(tmp_path.glob("s.*"))


def test_check_and_info_take_a_folder(tmp_path):
    data = LAYOUTS["lerobot"](tmp_path / "data")
    assert invoke("vla-data", "check", data).exit_code in (0, 1)
    shown = invoke("vla-data", "info", data).stdout
    assert "lerobot_v3" in shown
    assert "front 64x96, wrist 80x64" in shown
    assert "license       not stated" in shown
    assert list(tmp_path.iterdir()) == [data]  # nothing was written
