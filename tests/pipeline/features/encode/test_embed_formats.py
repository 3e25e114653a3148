"""Every file layout through to a complete store, from a manifest that leaves the layout open."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.manifest.model import Manifest, load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import check_digest
from policy.encoders.base import ImageEncoder
from policy.images import resize_images
from tests.pipeline.datasets.format_contract import (
    TINY_FPS,
    TINY_LENGTHS,
    tiny_action,
    tiny_frames,
    tiny_state,
)
from tests.pipeline.datasets.hdf5 import aloha_files, robomimic_files
from tests.pipeline.datasets.lerobot import lerobot_files
from tests.pipeline.datasets.replay_buffer import zarr_files
from tests.tower import load, tiny_tower


@dataclass(frozen=True)
class Layout:
    """How the tiny episodes are written, and where they lie there."""

    write: Callable[[Path], Path]
    """Writes below a folder and returns what `path` names."""
    front: str
    wrist: str
    state: str
    action: str
    instructions: tuple[str, ...] = ()
    """What the files say that the robot was told."""
    lossless: bool = True
    """False where a codec changes the frames; how much is the affair of the layout's own tests."""


def write_robomimic(folder: Path) -> Path:
    return robomimic_files.write_robomimic(folder / "image.hdf5", {0: 0, 1: 1})


def write_libero(folder: Path) -> Path:
    return robomimic_files.write_libero(folder / "task.hdf5", (0, 1))


def write_zarr(folder: Path) -> Path:
    return zarr_files.write_replay_buffer(folder / "x.zarr", zarr_files.tiny_arrays())


def write_lerobot_v3(folder: Path) -> Path:
    return lerobot_files.write_v3(folder, lerobot_files.tiny_episodes(), codec="av1")


def write_lerobot_images(folder: Path) -> Path:
    episodes = lerobot_files.tiny_image_episodes()
    return lerobot_files.write_v3(folder, episodes, image_keys=LEROBOT[:2])


def write_lerobot_v21(folder: Path) -> Path:
    return lerobot_files.write_v2(folder, lerobot_files.tiny_episodes(), codec="h264")


LEROBOT = (lerobot_files.FRONT, lerobot_files.WRIST, "observation.state", "action")
ALOHA = (aloha_files.FRONT, aloha_files.WRIST, aloha_files.STATE, aloha_files.ACTION)
ZARR = (zarr_files.FRONT, zarr_files.WRIST, "data/state", "data/action")
LAYOUTS = {
    "lerobot-v3.0": Layout(write_lerobot_v3, *LEROBOT, ("tidy",), lossless=False),
    "lerobot-v3.0-images": Layout(write_lerobot_images, *LEROBOT, ("tidy",)),
    "lerobot-v2.1": Layout(write_lerobot_v21, *LEROBOT, ("tidy",), lossless=False),
    "aloha": Layout(aloha_files.write_raw, *ALOHA),
    "robomimic": Layout(
        write_robomimic,
        robomimic_files.FRONT,
        robomimic_files.WRIST,
        robomimic_files.STATE,
        robomimic_files.ACTION,
    ),
    "libero": Layout(
        write_libero,
        robomimic_files.LIBERO_FRONT,
        robomimic_files.LIBERO_WRIST,
        robomimic_files.LIBERO_STATE,
        robomimic_files.ACTION,
        ("pick up the bowl",),
    ),
    "zarr": Layout(write_zarr, *ZARR),
}


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return load(tiny_tower())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_embedded_to_a_complete_store(name, tmp_path, encoder):
    layout = LAYOUTS[name]
    (tmp_path / "data").mkdir()
    manifest = Manifest.from_dict(
        {
            "name": name,
            "source": "a test",
            "revision": "1",
            "license": "none",
            "path": str(layout.write(tmp_path / "data")),
            "fps": TINY_FPS,
            "resize": [256, 256],
            "views": [{"name": v, "key": getattr(layout, v)} for v in ("front", "wrist")],
            "state": {"key": layout.state, "units": "halves"},
            "action": {"key": layout.action, "units": "quarters"},
        }
    )
    (tmp_path / "tiny.toml").write_text(manifest.to_toml())
    config = EmbedConfig(
        manifest=tmp_path / "tiny.toml", store=tmp_path / "s.zarr", encoder=tiny_tower()
    )
    assert embed_dataset(config).counts.encoded == 2 * sum(TINY_LENGTHS)
    assert embed_dataset(config).counts.encoded == 0

    store = FeatureStore.open(tmp_path / "s.zarr")
    check_digest(store)
    steps, features = store.read_steps(), store.read_features("pooled")
    np.testing.assert_array_equal(steps.state, np.concatenate([tiny_state(e) for e in range(2)]))
    np.testing.assert_array_equal(steps.action, np.concatenate([tiny_action(e) for e in range(2)]))
    np.testing.assert_array_equal(steps.episode_ends, np.cumsum(TINY_LENGTHS))
    assert store.attributes.instructions == layout.instructions
    reader = ManifestReader(load_manifest(config.manifest))
    for row, (episode, step) in {1: (0, 1), 7: (1, 4)}.items():
        views = [frames[0] for frames in reader.frames(episode, step, step + 1)]
        if layout.lossless:
            views = [tiny_frames(episode, view)[step] for view in ("front", "wrist")]
        frames = np.concatenate([resize_images(view[None]) for view in views])
        live = encoder.encode_views(frames[None])["pooled"]
        np.testing.assert_array_equal(features[row], live[0])
    reader.close()
