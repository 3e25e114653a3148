"""`vla-embed hf://...` against a real server on loopback that speaks the hub's endpoints."""

import tomllib

import pytest
from huggingface_hub import constants

from pipeline.features.store.feature_store import FeatureStore
from tests.cli.test_commands import invoke, refusal
from tests.hub_server import COMMIT, NAME, hub_server
from tests.pipeline.datasets.lerobot.lerobot_files import (
    FRONT,
    WRIST,
    VideoPlan,
    counted_episodes,
    write_v3,
)
from tests.tower import tiny_tower

OF_TWO = {
    f"{folder}-{file:03d}.{suffix}"
    for folder, suffix in (
        ("data/chunk-000/file", "parquet"),
        (f"videos/{FRONT}/chunk-000/file", "mp4"),
        (f"videos/{WRIST}/chunk-000/file", "mp4"),
    )
    for file in range(2)
}
INDEX = {"meta/info.json", "meta/episodes/chunk-000/file-000.parquet"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    plans = {FRONT: VideoPlan(((0,), (1,), (2,))), WRIST: VideoPlan(((0,), (1, 2)))}
    root = write_v3(tmp_path / "hub", counted_episodes(3, 2, 4), plans=plans, tables=((0,), (1, 2)))
    (root / "notes.pdf").write_bytes(b"not needed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub_server(root) as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)  # as HF_ENDPOINT sets both
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


def embed(tmp_path, address, *words):
    store = tmp_path / "s.zarr"
    result = invoke("vla-embed", address, "--store", store, "--encoder", tiny_tower(), *words)
    assert result.exit_code == 0, result.output
    return FeatureStore.open(store)


def test_a_dataset_of_the_hub_is_fetched_once_and_embedded(hub, tmp_path):
    assert embed(tmp_path, f"hf://{NAME}@main").num_rows == 9
    assert len(hub.fetched) == len(set(hub.fetched))
    assert set(hub.fetched) > INDEX | OF_TWO
    assert "notes.pdf" not in hub.fetched
    manifest = tomllib.loads((tmp_path / "s.toml").read_text())
    assert (manifest["source"], manifest["revision"]) == (f"hf://{NAME}", COMMIT)
    shown = invoke("vla-data", "info", f"hf://{NAME}@main")
    assert "\nepisodes      3\n" in shown.stdout
    hub.fetched.clear()
    embed(tmp_path, f"hf://{NAME}")
    assert hub.fetched == []


def test_only_the_files_of_the_episodes_are_fetched_and_a_cut_download_goes_on(hub, tmp_path):
    hub.broken = {f"videos/{WRIST}/chunk-000/file-000.mp4"}
    words = ("vla-embed", f"hf://{NAME}", "--store", tmp_path / "s.zarr", "--episodes", "2")
    assert "cannot be downloaded" in refusal(*words)
    assert not (tmp_path / "s.toml").exists()
    hub.broken = set()
    assert embed(tmp_path, f"hf://{NAME}", "--episodes", "2").num_rows == 5
    assert sorted(hub.fetched) == sorted(INDEX | OF_TWO)
    assert tomllib.loads((tmp_path / "s.toml").read_text())["episodes"] == {"only": [0, 1]}


def test_what_cannot_be_fetched_is_one_line_that_says_what_to_do(hub, tmp_path, monkeypatch):
    words = ("--store", tmp_path / "s.zarr")
    assert "expected hf://owner/name" in refusal("vla-embed", "hf://tiny", *words)
    assert "cannot be downloaded" in refusal("vla-embed", "hf://lerobot/absent", *words)
    assert "cannot be downloaded" in refusal("vla-embed", f"hf://{NAME}@absent", *words)
    assert "found 7 (1 such in all)" in refusal(
        "vla-embed", f"hf://{NAME}", *words, "--episodes", "0,7"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = refusal("vla-embed", f"hf://{NAME}", *words)
    assert "pass the folder of a local copy" in said
    assert not list(tmp_path.glob("s.*"))
