"""A policy in Python, by running the code that the README shows."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import RequestError
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.store.feature_store import FeatureStore
from pipeline.rollout.policy import Policy
from pipeline.training.presets import debug
from pipeline.training.session import train
from tests.pipeline.rollout.toy_run import VIEWS, record

README = Path(__file__).parents[3] / "pipeline/rollout/README.md"


class Robot:
    """Shows what was recorded."""

    def __init__(self, file: Path):
        with h5py.File(file) as episode:
            self.frames = {view: episode[f"observations/images/{view}"][0] for view in VIEWS}
            self.state = episode["observations/qpos"][0]
        self.moves: list[np.ndarray] = []

    def observe(self):
        return self.frames, self.state

    def move(self, action: np.ndarray) -> None:
        self.moves.append(action)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run and its store, under the names that the README gives them."""
    folder = tmp_path_factory.mktemp("python")
    manifest, store = record(folder), folder / "my.zarr"
    lite = {"encoder": "efficientnet-lite0", "features": ("pooled", "grid")}
    embed_dataset(EmbedConfig(manifest=manifest, store=store, **lite))
    train([store], folder / "runs/first", debug(), resume=False)
    return folder


def test_the_code_of_the_readme_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {"robot": Robot(folder / "data/episode_0.hdf5")}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    assert [move.shape for move in names["robot"].moves] == [(2,)] * debug().agent.num_action_steps
    held = FeatureStore.open(folder / "my.zarr")
    np.testing.assert_array_equal(names["grid"].numpy(), held.read_features("grid"))
    # The first recorded frames, encoded live, are the first row of the store.
    np.testing.assert_array_equal(names["features"]["pooled"], held.read_features("pooled")[0])


def test_an_episode_that_begins_again_gets_the_noise_of_the_next(folder):
    robot = Robot(folder / "data/episode_0.hdf5")
    policy = Policy.load(folder / "runs/first", seed=7)
    first = policy.act(*robot.observe())
    policy.reset()
    second = policy.act(*robot.observe())
    np.testing.assert_array_equal(
        second, Policy.load(folder / "runs/first", seed=8).act(*robot.observe())
    )
    assert (first != second).any()
    with pytest.raises(RequestError, match="observation/front"):
        policy.act({"top": robot.frames["top"]}, robot.state)
