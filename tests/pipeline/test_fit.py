"""How frames become square: as the manifest says, in the cache, the run and everything live."""

from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import StoreError
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.store.feature_store import FeatureStore
from pipeline.rollout.envs.registry import make_env
from pipeline.rollout.serve.config import ServeConfig
from pipeline.rollout.serve.session import ServedPolicy
from pipeline.training.presets import debug
from pipeline.training.session import train
from tests.pipeline.rollout import toy_env
from tests.pipeline.rollout.toy_run import write_env
from tests.pipeline.tiny import VIEWS, write_dataset
from tests.tower import load, tiny_tower

SIZE = (256, 384)  # height, width


def as_pillow_has_it(frame: np.ndarray, fit: str) -> np.ndarray:
    """The oracle: Pillow alone, for frames twice as high as wide or 256 x 384."""
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    picture = Image.fromarray(frame)
    if fit == "crop":
        picture = picture.crop((left, top, left + side, top + side))
    return np.asarray(picture.resize((256, 256), Image.Resampling.BILINEAR))


def manifest_with(fit: str, folder: Path) -> Path:
    manifest = write_dataset(folder, size=SIZE)
    manifest.write_text(f'resize = [256, 256]\nfit = "{fit}"\n' + manifest.read_text())
    return manifest


def first_frames(manifest: Path) -> np.ndarray:
    with h5py.File(manifest.parent / "data/episode_0.hdf5") as file:
        return np.stack([file[f"observations/images/{view}"][0] for view in VIEWS])


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_cache_run_and_server_make_frames_square_as_the_manifest_says(tmp_path, fit):
    manifest = manifest_with(fit, tmp_path)
    path, run = tmp_path / "s.zarr", tmp_path / "run"
    embed_dataset(EmbedConfig(manifest=manifest, store=path, encoder=tiny_tower()))
    recorded = first_frames(manifest)
    expected = np.stack([as_pillow_has_it(frame, fit) for frame in recorded])
    live = load(tiny_tower()).encode_views(expected[None])["pooled"][0]
    np.testing.assert_array_equal(FeatureStore.open(path).read_features("pooled")[0], live)

    train([path], run, debug(), resume=False)
    served = ServedPolicy.load(ServeConfig(run=run, encoder=tiny_tower(), device="cpu"))
    observation = {f"observation/{view}": recorded[i] for i, view in enumerate(VIEWS)}
    request = served.reader.read({**observation, "observation/state": np.zeros(5, np.float32)})
    np.testing.assert_array_equal(request.frames[0], expected)


def test_a_store_of_another_fit_is_not_resumed(tmp_path):
    manifest = manifest_with("crop", tmp_path)
    path = tmp_path / "s.zarr"
    embed_dataset(EmbedConfig(manifest=manifest, store=path, encoder=tiny_tower()))
    manifest.write_text(manifest.read_text().replace('fit = "crop"', 'fit = "pad"'))
    with pytest.raises(StoreError, match="different manifest"):
        embed_dataset(EmbedConfig(manifest=manifest, store=path, encoder=tiny_tower()))


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_a_gymnasium_environment_shows_its_pictures_as_the_run_needs_them(tmp_path, fit):
    env = make_env(write_env(tmp_path / "env.toml", package=None), ("top",), fit=fit)
    env.reset(3)
    oracle = gymnasium.make(toy_env.ID, disable_env_checker=True)
    observation, _ = oracle.reset(seed=3)
    picture = observation["pixels"]["top"]
    np.testing.assert_array_equal(env.render()[0], as_pillow_has_it(picture, fit))
    env.close()
