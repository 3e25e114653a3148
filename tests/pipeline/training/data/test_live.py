"""Live training proves the cache: the tower on the frames at every step, and the same bits."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import h5py
import pytest
import torch

from pipeline.errors import ConfigError, RunError, StoreError
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.store.feature_store import FeatureStore
from pipeline.training.config import with_settings
from pipeline.training.data.live import open_live_windows
from pipeline.training.data.windows import WindowData
from pipeline.training.presets import debug
from pipeline.training.run.checkpoint import read_checkpoint
from pipeline.training.run.folder import read_run
from pipeline.training.session import train
from policy.encoders.siglip2 import STAND_IN
from tests.pipeline.tiny import write_dataset
from tests.tower import tiny_tower

NUM_STEPS = 20
THIRD_VIEW = ', {name = "r_vis", key = "observations/images/r_vis"}'
CONFIG = with_settings(
    debug(),
    [
        f"steps={NUM_STEPS}",
        "batch_size=4",
        f"checkpoint_every={NUM_STEPS}",
        f"validate_every={NUM_STEPS}",
        "heldout_share=0.3",
    ],
)


def embed(folder: Path, lengths: tuple[int, ...], encoder: str) -> Path:
    """Embed a dataset of two views with one variant of each frame."""
    manifest = write_dataset(folder, lengths)
    manifest.write_text(manifest.read_text().replace(THIRD_VIEW, ""))
    store = folder / "s.zarr"
    embed_dataset(EmbedConfig(manifest=manifest, store=store, encoder=encoder, num_variants=1))
    return store


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[Path]:
    """Two stores of a tower that takes no time."""
    lengths = ((2, 3, 1), (3, 1))
    return [embed(tmp_path_factory.mktemp("live"), each, tiny_tower()) for each in lengths]


@pytest.fixture(scope="module")
def stand_in_store(tmp_path_factory) -> Path:
    """A store of a tower with SigLIP2's own sizes."""
    return embed(tmp_path_factory.mktemp("stand-in"), (2, 2), STAND_IN)


@contextmanager
def live_windows(*paths: Path):
    stores = map(FeatureStore.open, paths)
    with open_live_windows(*stores, heldout_share=0.0, encoder=tiny_tower()) as data:
        yield data


def test_live_windows_equal_cached_ones_bit_for_bit(stores):
    """Two stores; views in different variants; repeated rows; an episode's first and last step."""
    cached = WindowData(*map(FeatureStore.open, stores), heldout_share=0.0)
    rows = torch.tensor([0, 9, 3, 3, 6, 5])
    with live_windows(*stores) as live:
        for variants in (None, torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0], [0, 1], [1, 0]])):
            ours, theirs = (
                data.gather(rows, obs_horizon=2, pred_horizon=4, variants=variants)
                for data in (live, cached)
            )
            for field in ("features", "state", "actions", "valid"):
                assert torch.equal(getattr(ours, field), getattr(theirs, field)), field


def test_each_distinct_frame_of_a_batch_is_encoded_once(stores, monkeypatch):
    with live_windows(stores[0]) as live:
        encoded = []
        encode = live.encoder.encode_views
        monkeypatch.setattr(
            live.encoder,
            "encode_views",
            lambda frames: (encoded.append(frames.shape[:2].numel()), encode(frames))[1],
        )
        live.gather(torch.tensor([1, 1, 0, 3]), obs_horizon=2, pred_horizon=4)
    assert sum(encoded) == 2 * len({0, 1, 2, 3})


@pytest.mark.parametrize("case", ["two stores", "stand-in"])
def test_a_live_run_has_the_losses_and_the_weights_of_a_cached_one(case, request, tmp_path):
    config, weights, tower = CONFIG, (1.0, 2.0), tiny_tower()
    if case == "stand-in":
        paths, weights, tower = [request.getfixturevalue("stand_in_store")], (), None
        config = with_settings(CONFIG, ["batch_size=1"])
    else:
        paths = request.getfixturevalue("stores")
    cached = train(paths, tmp_path / "cached", config, resume=False, weights=weights)
    live = train(
        paths, tmp_path / "live", config, resume=False, weights=weights, live=True, encoder=tower
    )
    logs = [
        [json.loads(line) for line in (report.run / "log.jsonl").read_text().splitlines()]
        for report in (cached, live)
    ]
    assert [entry["step"] for entry in logs[0]] == list(range(1, NUM_STEPS + 1))
    for entry in [*logs[0], *logs[1]]:
        assert entry.pop("steps_per_s") > 0  # the one figure that is not the same
    assert logs[0] == logs[1]
    ours, theirs = (read_checkpoint(report.run, NUM_STEPS) for report in (cached, live))
    for part in ("agent", "average", "optimizer"):
        for name, tensor in getattr(ours, part).items():
            assert torch.equal(tensor, getattr(theirs, part)[name]), f"{part}: {name}"


def test_a_live_run_goes_on_live(stores, tmp_path):
    config, run, tower = with_settings(CONFIG, ["steps=3"]), tmp_path / "run", tiny_tower()
    train(stores[:1], run, config, resume=False, live=True, encoder=tower)
    assert read_run(run).live
    with pytest.raises(RunError, match="was started with live=True, now it is False"):
        train(stores[:1], run, config, resume=True)
    report = train(stores[:1], run, config, resume=True, live=True, encoder=tower)
    assert report.resumed_from == 3


def test_pixels_that_were_not_embedded_stop_a_live_run(tmp_path):
    store = embed(tmp_path, (2, 2), tiny_tower())
    with h5py.File(tmp_path / "data/episode_1.hdf5", "r+") as file:
        file["observations/images/top"][1] = 7
    pattern = r"episode_1\.hdf5.*, step 1, view top: pixels are not those that were embedded"
    with live_windows(store) as live:
        live.gather(torch.tensor([0, 1, 2]), obs_horizon=1, pred_horizon=1)
        with pytest.raises(StoreError, match=pattern):
            live.gather(torch.tensor([3]), obs_horizon=1, pred_horizon=1)

    shutil.rmtree(tmp_path / "data")
    (tmp_path / "tiny.toml").unlink()
    with pytest.raises(StoreError, match="does not say where its dataset lies"):
        train([store], tmp_path / "run", CONFIG, resume=False, live=True, encoder=tiny_tower())
    assert not (tmp_path / "run").exists()


def test_a_encoder_is_only_for_live_training(stores, tmp_path):
    with pytest.raises(ConfigError, match="add --live"):
        train(stores[:1], tmp_path / "run", CONFIG, resume=False, encoder="stand-in")
