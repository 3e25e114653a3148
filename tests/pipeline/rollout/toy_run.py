"""A policy trained for a few steps on recordings of the toy environment, and that environment."""

import json
from pathlib import Path

import numpy as np

from pipeline.datasets.hdf5.recording import RecordedEpisode, write_episode
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.rollout.envs.registry import make_env
from pipeline.training.presets import debug
from pipeline.training.session import train
from tests.pipeline.rollout import faulty_env
from tests.tower import tiny_tower

VIEWS = ("front", "top", "side")
CONTROL_HZ = 10.0
EPISODES, STEPS = 5, 6
PACKAGE = "dot_envs"

ENV = f"""
id = "{faulty_env.ID}"
control_hz = {CONTROL_HZ}

[[views]]
name = "front"
key = "pixels/front"

[[views]]
name = "top"
key = "pixels/top"

[[views]]
name = "side"
key = "render()"

[state]
key = ["agent_pos", "speed"]
units = "x and y of the dot, half widths; its speed, half widths a step"

[action]
units = "speed along x and y, 1 = the largest"

[success]
info = "task/is_success"
"""


def install(folder: Path, name: str) -> None:
    """Write a package that registers the toy environments, also in other processes."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("import tests.pipeline.rollout.faulty_env\n")


def write_env(
    file: Path, *, max_steps: int = 20, package: str | None = PACKAGE, **kwargs: object
) -> str:
    """Write the environment's file, and return the name that `make_env` takes.

    Without the package, the environment is known to this process alone.
    """
    module = "" if package is None else f'module = "{package}"\n'
    arguments = ", ".join(f"{key} = {json.dumps(value)}" for key, value in kwargs.items())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{module}max_steps = {max_steps}\nkwargs = {{{arguments}}}\n{ENV}")
    return f"gymnasium:{file}"


def record(folder: Path, told: tuple[str, ...] = ("",) * EPISODES) -> Path:
    """Record random moves in the toy environment, and return their manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    env = make_env(write_env(folder / "recorded.toml", package=None), VIEWS)
    (folder / "data").mkdir()
    for seed in range(EPISODES):
        actions = np.random.default_rng(seed).uniform(-1, 1, (STEPS, 2)).astype(np.float32)
        env.reset(seed)
        frames, states = [], []
        for action in actions:
            frames.append(env.render())
            states.append(env.state())
            env.step(action)
        episode = RecordedEpisode(
            frames=dict(zip(VIEWS, np.stack(frames, axis=1), strict=True)),
            state=np.stack(states),
            action=actions,
            env=env.name,
            seed=seed,
            fps=CONTROL_HZ,
            instruction=told[seed],
        )
        write_episode(folder / f"data/episode_{seed}.hdf5", episode)
    env.close()
    views = ", ".join(f'{{name = "{view}", key = "observations/images/{view}"}}' for view in VIEWS)
    manifest = folder / "toy.toml"
    manifest.write_text(
        'name = "toy"\nsource = "random moves"\nrevision = "0"\nlicense = "CC0-1.0"\n'
        f'format = "aloha_hdf5"\npath = "data"\nfps = {CONTROL_HZ}\nviews = [{views}]\n'
        'state = {key = "observations/qpos", units = "none"}\n'
        'action = {key = "action", units = "none"}\n'
    )
    return manifest


def write_toy_run(folder: Path) -> Path:
    """Embed recordings with the tiny tower, train on them, and return the run's folder."""
    store = folder / "features.zarr"
    embed_dataset(EmbedConfig(manifest=record(folder), store=store, encoder=tiny_tower()))
    train([store], folder / "run", debug(), resume=False)
    return folder / "run"
