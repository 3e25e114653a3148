"""How many images a second reach an encoder that costs nothing, by format and by processes?

    python -m tests.bench.feeding [--rounds 3] [FORMAT...]

Datasets of three cameras and whole numbers of units are read with one and two processes by turns,
and embedded with two; every rate is that of the middle half of the chunks, so that starting
processes is in none. Bars: two processes read 1.8 x as fast as one, and embedding end to end (index
of known frames, features, hashes and checksums of the store included) takes 85 % of what they read.
The rate of a core is images by processor time of one thread, which other load changes little; so is
the time of the embedding process, beside those that read and the encoder.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from pipeline.datasets.hdf5.recording import RecordedEpisode, write_episode
from pipeline.datasets.manifest.model import Manifest, load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.encode.frames import FrameSource
from pipeline.features.encode.known_frames import FrameIndex
from pipeline.features.encode.unit_encoder import UnitEncoder
from pipeline.features.store.feature_store import FeatureStore
from policy.encoders.base import EncoderSettings, ImageEncoder, feature_spec, hash_weights
from policy.encoders.registry import ENCODERS
from policy.spec import EncoderIdentity
from tests.bench.video_decoding import (
    AV1,
    FPS,
    H264,
    VIEWS,
    draw_scene,
    moving_scene,
    write_dataset,
)
from tests.pipeline.datasets.format_contract import TINY_FPS
from tests.pipeline.datasets.lerobot.lerobot_files import TinyEpisode, write_v3

EPISODES = 8
MIN_SCALING, MIN_SHARE = 1.8, 0.85
WANTED_RATE = 6_000  # images a second that a current GPU encodes
SMALL, LARGE = (256, 256), (480, 640)


class FreeEncoder(ImageEncoder):
    """Takes 768 numbers from the edge of an image."""

    default_features = ("pooled",)

    def __init__(self, settings: EncoderSettings):
        super().__init__(settings, library="none", known=("pooled",))

    @property
    def identity(self) -> EncoderIdentity:
        """An encoder without weights."""
        return EncoderIdentity(
            name="free",
            revision="1",
            pretrained=False,
            compute_dtype="float32",
            weights=hash_weights({}, {}),
            features=(feature_spec("pooled", (768,), source="edge"),),
        )

    def _forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pooled": images[:, 0].reshape(len(images), 768)}


def load(settings: EncoderSettings) -> FreeEncoder:
    """Load it; the registry calls this."""
    return FreeEncoder(settings)


def windows(length: int, noise: float) -> Iterator[np.ndarray]:
    """Yield the frames of each episode."""
    scene = draw_scene(SMALL, noise)
    for first in range(0, EPISODES * length, length):
        yield np.stack([moving_scene(first + step, SMALL, scene) for step in range(length)])


def write_hdf5(root: Path, length: int) -> tuple[str, str, list[str]]:
    """Write what `vla-data record` writes: gzip, of a simulator's frames without noise."""
    numbers = np.zeros((length, 2), np.float32)
    for number, frames in enumerate(windows(length, 0.0)):
        views = {f"view{view}": frames for view in range(3)}
        episode = RecordedEpisode(
            frames=views, state=numbers, action=numbers, env="bench", seed=number, fps=FPS
        )
        write_episode(root / f"episode_{number}.hdf5", episode)
    return "observations/qpos", "action", [f"observations/images/{view}" for view in views]


def write_images(root: Path, length: int) -> tuple[str, str, list[str]]:
    """Write PNG images in Parquet."""
    episodes = [
        TinyEpisode(dict.fromkeys(VIEWS, frames), np.zeros((length, 2)), np.zeros((length, 3)))
        for frames in windows(length, 2.0)
    ]
    write_v3(root, episodes, image_keys=VIEWS, rows_per_group=length)
    return "observation.state", "action", list(VIEWS)


def write_videos(codec: tuple[str, dict], size: tuple[int, int]) -> Callable:
    """Return what writes one file per camera with all episodes."""

    def write(root: Path, length: int) -> tuple[str, str, list[str]]:
        write_dataset(root, *codec, size, episodes=EPISODES, length=length)
        return "observation.state", "action", list(VIEWS)

    return write


# And the steps of each episode: some seconds of reading.
FORMATS = {
    "gzip HDF5, 256x256": (write_hdf5, 256),
    "PNG in Parquet, 256x256": (write_images, 128),
    "AV1 g=2, 256x256": (write_videos(AV1, SMALL), 512),
    "AV1 g=2, 480x640": (write_videos(AV1, LARGE), 128),
    "H.264 g=30, 256x256": (write_videos(H264, SMALL), 1_024),
    "H.264 g=30, 480x640": (write_videos(H264, LARGE), 256),
}


def write_manifest(folder: Path, name: str) -> Path:
    """Write a dataset of a format, and its manifest."""
    write, length = FORMATS[name]
    root = folder / "data"
    root.mkdir()
    state, action, keys = write(root, length)
    manifest = Manifest.from_dict(
        {
            **{"name": "bench", "source": "drawn", "revision": "1", "license": "none"},
            **{"path": str(root), "resize": [256, 256]},
            "fps": TINY_FPS if write is write_images else FPS,
            "views": [{"name": f"view{n}", "key": key} for n, key in enumerate(keys)],
            "state": {"key": state, "units": "none"},
            "action": {"key": action, "units": "none"},
        }
    )
    (folder / "bench.toml").write_text(manifest.to_toml())
    return folder / "bench.toml"


class Clock:
    """The rate of images while every process reads: from a quarter to three of the chunks."""

    def __init__(self) -> None:
        self._times: list[tuple[float, int]] = []

    def add(self, steps: int) -> None:
        """Note that a chunk has come."""
        self._times.append((time.perf_counter(), steps))

    @property
    def rate(self) -> float:
        """Images per second."""
        first, last = len(self._times) // 4, 3 * len(self._times) // 4
        seconds = self._times[last][0] - self._times[first][0]
        return 3 * sum(steps for _, steps in self._times[first + 1 : last + 1]) / seconds


def read_rate(source: FrameSource, store: FeatureStore) -> float:
    """Read every unit, and return the images per second."""
    clock = Clock()
    rows = {unit: store.unit_rows(unit) for unit in range(store.num_units)}
    for _, own, _ in source.read(rows):
        clock.add(own.stop - own.start)
    return clock.rate


def embed_rate(source: FrameSource, store: FeatureStore, encoder: ImageEncoder) -> float:
    """Read, encode and write every unit, and return the images per second."""
    clock = Clock()
    index = FrameIndex.of([], place_matters=False)
    units = range(store.num_units)
    for _ in UnitEncoder(store, source, encoder, index).encode(units, clock.add):
        pass
    return clock.rate


def measure(name: str, folder: Path, rounds: int) -> str:
    """Return a row of the table."""
    manifest = write_manifest(folder, name)
    path = folder / "s.zarr"
    embed_dataset(EmbedConfig(manifest=manifest, store=path, encoder="free"))
    store = FeatureStore.open(path, writable=True)
    encoder = load(EncoderSettings(name="free", images_per_pass=3))
    ends, num_images = store.read_episode_ends(), 3 * store.num_rows
    per_core, scaling, shares, own_us = [], [], [], []
    with closing(ManifestReader(load_manifest(manifest))) as reader:
        sources = [FrameSource(reader, ends, 0, num_workers=number) for number in range(3)]
        for _ in range(rounds):
            started = time.process_time()
            read_rate(sources[0], store)
            per_core.append(num_images / (time.process_time() - started))
            one, two = (read_rate(source, store) for source in sources[1:])
            started = time.process_time()
            shares.append(embed_rate(sources[2], store, encoder) / two)
            own_us.append(1e6 * (time.process_time() - started) / num_images)
            scaling.append(two / one)
    core, own = statistics.median(per_core), statistics.median(own_us)
    figures = f"{core:,.0f} | {WANTED_RATE / core:.1f} | {own:.0f}"
    ratios = " | ".join(f"{statistics.median(x):.2f} ({min(x):.2f})" for x in (scaling, shares))
    return f"| {name} | {figures} | {ratios} |"


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("formats", nargs="*", default=list(FORMATS))
    chosen = arguments.parse_args()
    os.environ.setdefault("SVT_LOG", "1")
    torch.set_num_threads(1)
    ENCODERS["free"] = __spec__.name
    print(
        f"| format | images/s of a core | cores for {WANTED_RATE:,}/s | us an image, here | "
        f"two / one (worst; bar {MIN_SCALING}) | embedding / reading (worst; bar {MIN_SHARE}) |"
    )
    print("|---|---|---|---|---|---|")
    for name in chosen.formats:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(name, Path(folder), chosen.rounds), flush=True)
    print(f"load {os.getloadavg()}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
