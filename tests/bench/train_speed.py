"""What the cache saves: a step of training on cached features against one with the tower running.

    python -m tests.bench.train_speed [--threads 2] [--live-steps 1]

Both train the same agent on the same windows of the same dataset, batch 64, with a full-size tower
of random weights: once its pooled features are read from memory (bars: 25 x with the design's head,
100 x with the head of `demo`), once it encodes every distinct frame of the batch, in bfloat16 where
the machine has it, as `vla-embed` does. The store of this benchmark holds random numbers as
features; live training reads none of them. And: which share of a cached step prepares its data
(bar: 2 %).
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
import torch

from pipeline.datasets.manifest.model import load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.features.encode.frames import hash_frames
from pipeline.features.identity.probe import make_probe
from pipeline.features.store.attributes import SourceShare, StoreAttributes
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import mark_complete
from pipeline.features.store.start_frames import MAX_STARTS, shrink_frames
from pipeline.features.store.steps import StepArrays
from pipeline.training.config import TrainConfig, with_settings
from pipeline.training.data.windows import WindowData
from pipeline.training.presets import demo, proj96
from pipeline.training.run.folder import DataIdentity, RunDescription, StoreIdentity
from pipeline.training.trainer import Trainer
from policy.encoders.base import ImageEncoder
from tests.bench.embed_memory import write_frames
from tests.bench.live_training import LiveWindowData
from tests.policy.encoders.test_siglip2 import save_checkpoint
from tests.tower import load

NUM_STEPS: Final = 2_000  # control steps: two windows of a batch hardly ever share a frame
BATCH: Final = 64
CACHED_STEPS: Final = {"design": 6, "demo": 60}
MIN_SPEEDUP: Final = {"design": 25, "demo": 100}
MAX_DATA_SHARE: Final = 0.02
CPU: Final = torch.device("cpu")


def write_store(path: Path, reader: ManifestReader, encoder: ImageEncoder) -> FeatureStore:
    """Write a store of the dataset's steps and frame hashes, with random features."""
    episodes = range(reader.num_episodes)
    lengths = [reader.episode_length(episode) for episode in episodes]
    steps = StepArrays(
        state=np.concatenate([reader.state(episode) for episode in episodes]),
        action=np.concatenate([reader.action(episode) for episode in episodes]),
        timestamp=np.concatenate([reader.timestamp(episode) for episode in episodes]),
        episode_ends=np.cumsum(lengths, dtype=np.int64),
    )
    first = np.stack(reader.frames(0, 0, 1), axis=1)
    probe = make_probe(encoder, first)
    attributes = StoreAttributes(
        encoder=encoder.identity,
        environment=probe.environment,
        view_names=reader.view_names,
        fps=reader.fps,
        manifest={"name": "noise"},
        manifest_digest="0" * 64,
        sources=(SourceShare(num_episodes=len(lengths), weight=1.0),),
        validation=None,
    )
    store = FeatureStore.create(path, attributes, steps, probe)
    hashes = np.concatenate(
        [
            hash_frames(np.stack(reader.frames(episode, 0, lengths[episode]), axis=1))
            for episode in episodes
        ]
    )
    numbers = np.random.default_rng(0)
    for unit in range(store.num_units):
        start, stop = store.unit_rows(unit)
        features = numbers.normal(size=(stop - start, len(reader.view_names), 768))
        rows = {"pooled": features.astype(np.float16)}
        store.write_unit(unit, rows, hashes[start:stop], {probe.environment.digest()})
    store.write_start_frames(shrink_frames(first).repeat(min(len(lengths), MAX_STARTS), axis=0))
    mark_complete(store)
    return store


def trainer_of(
    config: TrainConfig,
    store: FeatureStore,
    data: WindowData,
    run: Path,
    device: torch.device = CPU,
) -> Trainer:
    """Build a trainer that writes nothing."""
    held = store.attributes
    identity = DataIdentity(
        stores=(StoreIdentity(name="noise", digest="0", weight=1.0, manifest={}),),
        fps=held.fps,
        encoder=held.encoder,
        probe_digest="0",
        start_frames_digest="0",
    )
    description = RunDescription(config=config, spec=data.spec, data=identity)
    return Trainer(run, description, data, device)


def seconds_a_step(trainer: Trainer, steps: int) -> float:
    """Return the median duration of some steps."""
    spent = []
    for _ in range(steps):
        started = time.perf_counter()
        trainer.advance()
        spent.append(time.perf_counter() - started)
    return sorted(spent)[len(spent) // 2]


def seconds_of_data(trainer: Trainer, steps: int) -> float:
    """Return the median duration of sampling and gathering a batch."""
    spent = []
    for step in range(steps):
        started = time.perf_counter()
        for _ in trainer.batches.chunks(step):
            pass
        spent.append(time.perf_counter() - started)
    return sorted(spent)[len(spent) // 2]


def main() -> None:
    """Print every figure and its bar."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--threads", type=int, default=os.cpu_count())
    arguments.add_argument("--live-steps", type=int, default=1)
    arguments.add_argument("--layers", type=int, default=12, help="of the tower; fewer to try out")
    arguments.add_argument("--steps", type=int, default=NUM_STEPS, help="fewer to try out")
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        checkpoint = save_checkpoint(Path(folder) / "tower", num_layers=chosen.layers)
        encoder = load(str(checkpoint))
        manifest = write_frames(Path(folder) / "dataset", chosen.steps)
        reader = ManifestReader(load_manifest(manifest))
        store = write_store(Path(folder) / "store.zarr", reader, encoder)
        cached = WindowData(store, features=("pooled",), validation_share=0.0)
        live = LiveWindowData(store, readers=[reader], encoder=encoder, validation_share=0.0)
        dtype = encoder.identity.compute_dtype
        print(f"{chosen.threads} threads, batch {BATCH}, tower in {dtype}")
        for name, preset in (("design", proj96()), ("demo", demo())):
            settings = [f"batch_size={BATCH}", "validation_share=0.0"]
            config = with_settings(preset, [*settings, "agent.readers={pooled={}}"])
            ours = trainer_of(config, store, cached, run)
            ours.advance()  # picks kernels, wakes threads
            before = seconds_a_step(ours, CACHED_STEPS[name])
            share = seconds_of_data(ours, 50) / before
            rival = seconds_a_step(trainer_of(config, store, live, run), chosen.live_steps)
            step = (before + seconds_a_step(ours, CACHED_STEPS[name])) / 2
            print(
                f"{name} head: cached {1e3 * step:.1f} ms, live {1e3 * rival:.0f} ms a step: "
                f"{rival / step:.0f} x (bar {MIN_SPEEDUP[name]}); data {100 * share:.2f} % of a "
                f"cached step (bar {100 * MAX_DATA_SHARE:.0f} % at the design's sizes)",
                flush=True,
            )
        reader.close()


if __name__ == "__main__":
    main()
