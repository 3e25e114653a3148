"""Does everything work on a GPU, as fast and as exactly as it should? One table, in 8 minutes.

    make gpu-check        # or: python -m tests.bench.gpu

A full-size tower with random weights embeds recorded HDF5, three presets train on the store, and a
policy decides. Bars: embedding, from its first chunk to its last, at 60 % of the encoder's rate;
cached features equal live ones bit for bit; the encoder passes the probe of a store that the CPU
made, within its tolerance. The exit code is 1 if one is missed. Without a GPU the same runs on the
CPU with small sizes, no speed has a bar, and the exit code is 0 if the others hold.
"""

import logging
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from pipeline.datasets.manifest.model import load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import EncoderMismatchError
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.encode.frames import FrameSource, free_cores
from pipeline.features.identity.encoder import load_like
from pipeline.features.identity.probe import check_probe
from pipeline.features.identity.verify import verify_store
from pipeline.features.store.feature_store import FeatureStore
from pipeline.rollout.policy import Policy
from pipeline.training.config import with_settings
from pipeline.training.data.windows import WindowData
from pipeline.training.presets import preset_config
from pipeline.training.session import train
from policy.device import open_device
from policy.encoders.base import ImageEncoder
from tests.bench.embed_memory import write_frames
from tests.bench.embed_speed import operations_per_image, rival_images_per_s
from tests.bench.feeding import embed_rate
from tests.bench.train_speed import seconds_of_data, trainer_of
from tests.policy.encoders.test_siglip2 import save_checkpoint

FEATURES = ("pooled", "grid")
PRESETS = ("proj96", "proj192", "grid96")
MIN_SHARE = 0.6
VERIFIED_STEPS = 64
MATRIX = 8_192  # rows and columns; fills the largest card
SETTINGS = ["validation_share=0.0", "optimizer.warmup_steps=1"]


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    layers: int
    steps: int
    """Of the dataset, three images each."""
    train_steps: int
    decisions: int
    matrix: int


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    found: str
    bar: str = ""
    holds: bool = True


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def encoder_rate(encoder: ImageEncoder, seconds: float) -> float:
    """Return images per second of an encoder that is given chunks of 96 images from memory."""
    images = np.random.default_rng(0).integers(0, 256, (96, 256, 256, 3), np.uint8)
    encoder.encode(images)
    started, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < seconds:
        count += len(encoder.encode(images)["pooled"])
    return count / spent


def matmul_rate(device: torch.device, size: int) -> float:
    """Return operations per second of bfloat16 products of square matrices."""
    left, right = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    rates = []
    for _ in range(20):
        synchronize(device)
        started = time.perf_counter()
        left @ right
        synchronize(device)
        rates.append(2 * size**3 / (time.perf_counter() - started))
    return sorted(rates)[len(rates) // 2]


def load_from(store: FeatureStore, tower: Path, device: torch.device) -> ImageEncoder:
    """Load the encoder of a store."""
    held = store.attributes.environment
    return load_like(
        store.encoder, held, store.read_bases(), name=str(tower), where="", device=device
    )


def check_embedding(folder: Path, sizes: Sizes, device: torch.device) -> Iterator[Row]:
    """Embed, and compare with the encoder alone, the plain way, live features and the CPU's."""
    is_gpu, tower = device.type == "cuda", folder / "tower"
    manifest = write_frames(folder / "dataset", sizes.steps)
    settings = {"encoder": str(tower), "features": FEATURES, "compute_dtype": "bfloat16"}
    config = EmbedConfig(manifest=manifest, store=folder / "s.zarr", device=str(device), **settings)
    report = embed_dataset(config)
    store = FeatureStore.open(config.store, writable=True)
    images_per_pass = store.attributes.environment.images_per_pass
    encoder = load_from(store, tower, device)
    rival = rival_images_per_s(tower, manifest, str(device))
    alone = encoder_rate(encoder, 3.0)
    workers = free_cores() if is_gpu else 0
    with closing(ManifestReader(load_manifest(manifest))) as reader:
        ends = store.read_episode_ends()
        source = FrameSource(reader, ends, 0, num_workers=workers, is_pinned=is_gpu)
        fed = embed_rate(source, store, encoder)
    embed_dataset(config)  # completes what was just written once more
    whole = report.counts.encoded / report.elapsed_s
    share = operations_per_image(tower) * alone / matmul_rate(device, sizes.matrix)
    yield Row("embedding, start to finish", f"{whole:,.0f} images/s, {report.elapsed_s:.0f} s")
    yield Row(f"embedding, fed by {workers} processes", f"{fed:,.0f} images/s")
    yield Row("plain transformers, batch 32", f"{rival:,.0f} images/s")
    yield Row("encoder alone", f"{alone:,.0f} images/s, {images_per_pass} a pass")
    yield Row("its share of the bfloat16 products' rate", f"{100 * share:.0f} %")
    holds = fed / alone >= MIN_SHARE or not is_gpu
    yield Row("embedding / encoder alone", f"{fed / alone:.2f}", f"{MIN_SHARE} on a GPU", holds)
    found = verify_store(
        config.store, None, sample=VERIFIED_STEPS, seed=0, encoder=str(tower), device=str(device)
    )
    equal = found.num_exact_steps - found.num_broken_steps
    every = found.num_steps == equal
    yield Row("cached = live, bit for bit", f"{equal} of {found.num_steps} steps", "all", every)
    few = write_frames(folder / "few", 3)
    small = EmbedConfig(
        manifest=few,
        store=folder / "cpu.zarr",
        device="cpu",
        images_per_pass=images_per_pass,
        **settings,
    )
    embed_dataset(small)
    other, verdict = FeatureStore.open(small.store), "passes"
    try:
        check_probe(load_from(other, tower, device), other.read_probe(), where="cpu.zarr")
    except EncoderMismatchError as error:
        verdict = str(error)
    yield Row("probe of a store made on the CPU", verdict, "passes", verdict == "passes")


def check_training(folder: Path, sizes: Sizes, device: torch.device) -> Iterator[Row]:
    """Take steps of each preset, and a decision of a policy."""
    store = FeatureStore.open(folder / "s.zarr")
    for name in PRESETS:
        config = with_settings(preset_config(name), SETTINGS)
        data = WindowData(store, features=tuple(config.agent.readers), validation_share=0.0)
        trainer = trainer_of(config, store, data, folder / "none", device)
        trainer.advance()
        synchronize(device)
        started = time.perf_counter()
        for _ in range(sizes.train_steps):
            trainer.advance()
        synchronize(device)
        step = (time.perf_counter() - started) / sizes.train_steps
        share = seconds_of_data(trainer, 20) / step
        yield Row(f"training {name}", f"{1 / step:.1f} steps/s, {100 * share:.1f} % for data")


def check_decisions(folder: Path, sizes: Sizes, device: torch.device) -> Row:
    """Return how long a policy takes from frames to actions."""
    run, config = folder / "run", with_settings(preset_config("proj96"), [*SETTINGS, "steps=2"])
    train([folder / "s.zarr"], run, config, resume=False, device=str(device))
    policy = Policy.load(run, encoder=str(folder / "tower"), device=str(device), camera_check="off")
    numbers = np.random.default_rng(0)
    spent = []
    for _ in range(sizes.decisions + 1):
        frames = {view: numbers.integers(0, 256, (256, 256, 3), np.uint8) for view in policy.views}
        started = time.perf_counter()
        policy.act(frames, np.zeros(2))
        spent.append(1e3 * (time.perf_counter() - started))
    middle, worst = np.percentile(spent[1:], [50, 99])
    return Row("decision", f"p50 {middle:.1f} ms, p99 {worst:.1f} ms")


def main() -> int:
    """Print the table, and return the exit code."""
    device = open_device("auto" if torch.cuda.is_available() else "cpu")
    is_gpu = device.type == "cuda"
    sizes = Sizes(12, 6_000, 100, 200, MATRIX) if is_gpu else Sizes(1, 64, 1, 5, 1_024)
    card = torch.cuda.get_device_name(device) if is_gpu else f"no GPU, {platform.machine()}"
    print(f"{card}, torch {torch.__version__}, {free_cores() + 1} cores", end=", ")
    print(f"{datetime.now(UTC):%Y-%m-%d}\n\n| | found | bar | |\n|---|---|---|---|")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    started, all_hold = time.perf_counter(), True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_checkpoint(folder / "tower", num_layers=sizes.layers)
        checks = (check_embedding, check_training)
        rows = [row for check in checks for row in check(folder, sizes, device)]
        rows.append(check_decisions(folder, sizes, device))
    if is_gpu:
        peak = torch.cuda.max_memory_allocated(device) / 1e9
        rows.append(Row("peak memory of the card", f"{peak:.1f} GB"))
    for row in rows:
        all_hold &= row.holds
        print(f"| {row.what} | {row.found} | {row.bar} | {'' if row.holds else 'MISSED'} |")
    print(f"\n{time.perf_counter() - started:.0f} s")
    if not is_gpu:
        print("no GPU here: small sizes on the CPU, which say nothing of a GPU's speed")
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
