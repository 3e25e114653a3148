"""A run in a simulator's shapes whose policy has learnt nothing: made in seconds."""

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
SHAPES = (VIEWS, 4, 4, 80.0)  # views, width of state and action, control rate in Hz


def write_run(folder: Path, *settings: str, shapes=SHAPES, told=("", "")) -> Path:
    """Embed noise with the tiny tower, train on it, and return the run's folder.

    `settings` change the debug preset, as `--set` does; `told` are the instructions of the two
    episodes.
    """
    store = folder / "features.zarr"
    embed_dataset(
        EmbedConfig(
            manifest=write_noise(folder, shapes, told),
            store=store,
            encoder=tiny_tower(),
            text_encoder="all-minilm-l6-v2" if any(told) else None,
        )
    )
    train([store], folder / "run", with_settings(debug(), settings), resume=False)
    return folder / "run"


def write_noise(folder: Path, shapes=SHAPES, told=("", "")) -> Path:
    """Write two episodes of noise in a simulator's shapes, and return their manifest's path."""
    view_names, state_dim, action_dim, control_hz = shapes
    (folder / "data").mkdir()
    for seed in range(2):
        numbers = np.random.default_rng(seed)
        episode = RecordedEpisode(
            frames={
                view: numbers.integers(0, 256, (3, 256, 256, 3), np.uint8) for view in view_names
            },
            state=numbers.normal(size=(3, state_dim)).astype(np.float32),
            action=numbers.uniform(-1, 1, (3, action_dim)).astype(np.float32),
            env=TASK,
            seed=seed,
            fps=control_hz,
            instruction=told[seed],
        )
        write_episode(folder / f"data/episode_{seed}.hdf5", episode)
    views = ", ".join(
        f'{{name = "{view}", key = "observations/images/{view}"}}' for view in view_names
    )
    manifest = folder / "noise.toml"
    manifest.write_text(
        'name = "noise"\nsource = "random numbers"\nrevision = "0"\nlicense = "CC0-1.0"\n'
        f'format = "aloha_hdf5"\npath = "data"\nfps = {control_hz}\nviews = [{views}]\n'
        'state = {key = "observations/qpos", units = "none"}\n'
        'action = {key = "action", units = "none"}\n'
    )
    return manifest
