"""A run in Meta-World's shapes whose policy has learnt nothing: made in seconds."""

from pathlib import Path

import numpy as np

from pipeline.datasets.hdf5.recording import RecordedEpisode, write_episode
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.training.config import with_settings
from pipeline.training.presets import debug
from pipeline.training.session import train
from tests.tower import tiny_tower

TASK = "metaworld/drawer-open-v3"
VIEWS = ("corner", "topview", "gripperPOV")
STATE_DIM, ACTION_DIM, CONTROL_HZ = 4, 4, 80.0


def write_run(folder: Path, *settings: str) -> Path:
    """Embed noise with the tiny tower, train on it, and return the run's folder.

    `settings` change the debug preset, as `--set` does.
    """
    store = folder / "features.zarr"
    embed_dataset(EmbedConfig(manifest=write_noise(folder), store=store, encoder=tiny_tower()))
    train([store], folder / "run", with_settings(debug(), settings), resume=False)
    return folder / "run"


def write_noise(folder: Path) -> Path:
    """Write two episodes of noise in Meta-World's shapes, and return their manifest's path."""
    (folder / "data").mkdir()
    for seed in range(2):
        numbers = np.random.default_rng(seed)
        episode = RecordedEpisode(
            frames={view: numbers.integers(0, 256, (3, 256, 256, 3), np.uint8) for view in VIEWS},
            state=numbers.normal(size=(3, STATE_DIM)).astype(np.float32),
            action=numbers.uniform(-1, 1, (3, ACTION_DIM)).astype(np.float32),
            env=TASK,
            seed=seed,
            fps=CONTROL_HZ,
        )
        write_episode(folder / f"data/episode_{seed}.hdf5", episode)
    views = ", ".join(f'{{name = "{view}", key = "observations/images/{view}"}}' for view in VIEWS)
    manifest = folder / "noise.toml"
    manifest.write_text(
        'name = "noise"\nsource = "random numbers"\nrevision = "0"\nlicense = "CC0-1.0"\n'
        f'format = "aloha_hdf5"\npath = "data"\nfps = {CONTROL_HZ}\nviews = [{views}]\n'
        'state = {key = "observations/qpos", units = "none"}\n'
        'action = {key = "action", units = "none"}\n'
    )
    return manifest
