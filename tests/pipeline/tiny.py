"""Small real datasets and stores for the tests of the rooms that read them."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np

from pipeline.datasets.hdf5.recording import RecordedEpisode, write_episode
from pipeline.features.identity.probe import Probe
from pipeline.features.store.attributes import Codec, SourceShare, StoreAttributes
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import mark_complete
from pipeline.features.store.start_frames import MAX_STARTS
from pipeline.features.store.steps import StepArrays
from pipeline.features.store.units import CHUNK_ROWS
from policy.encoders.environment import ComputeEnvironment
from policy.spec import EncoderIdentity, FeatureSpec

POOLED = {"pooled": (768,)}
VIEWS = ("front", "top", "r_vis")
STATE_DIM, ACTION_DIM = 5, 4
FPS = 50.0
TEXT_WIDTH = 6

MANIFEST = f"""
name = "tiny"
source = "random numbers"
revision = "0"
license = "CC0-1.0"
format = "aloha_hdf5"
path = "data"
fps = {FPS}
views = [{", ".join(f'{{name = "{v}", key = "observations/images/{v}"}}' for v in VIEWS)}]
state = {{key = "observations/qpos", units = "none"}}
action = {{key = "action", units = "none"}}
"""


def write_dataset(
    folder: Path, lengths: tuple[int, ...] = (5, 3), size: tuple[int, int] = (256, 256)
) -> Path:
    """Write random episodes of three views and return the manifest's path."""
    data = folder / "data"
    data.mkdir(parents=True)
    for seed, length in enumerate(lengths):
        (data / f"episode_{seed}.hdf5").write_bytes(_episode(seed, length, size))
    manifest = folder / "tiny.toml"
    manifest.write_text(MANIFEST)
    return manifest


@cache  # compressing noise takes long
def _episode(seed: int, length: int, size: tuple[int, int]) -> bytes:
    numbers = np.random.default_rng(seed)
    episode = RecordedEpisode(
        frames={view: numbers.integers(0, 256, (length, *size, 3), np.uint8) for view in VIEWS},
        state=numbers.normal(size=(length, STATE_DIM)).astype(np.float32),
        action=numbers.uniform(-1, 1, (length, ACTION_DIM)).astype(np.float32),
        env="tiny",
        seed=seed,
        fps=FPS,
    )
    with TemporaryDirectory() as folder:
        path = Path(folder, "episode.hdf5")
        write_episode(path, episode)
        return path.read_bytes()


def tiny_identity(
    weights: str = "f" * 64, shapes: Mapping[str, tuple[int, ...]] = MappingProxyType(POOLED)
) -> EncoderIdentity:
    return EncoderIdentity(
        name="tiny",
        revision="none",
        pretrained=False,
        compute_dtype="float32",
        weights=weights,
        features=tuple(
            FeatureSpec(name=name, shape=shape, fingerprint=f"of {name}")
            for name, shape in shapes.items()
        ),
    )


def tiny_steps(lengths: tuple[int, ...]) -> StepArrays:
    """Random state and action; row numbers in the first column of both."""
    num_rows = sum(lengths)
    numbers = np.random.default_rng(0)
    state = numbers.normal(size=(num_rows, STATE_DIM)).astype(np.float32)
    action = numbers.uniform(-1, 1, (num_rows, ACTION_DIM)).astype(np.float32)
    state[:, 0] = action[:, 0] = np.arange(num_rows)
    return StepArrays(
        state=state,
        action=action,
        timestamp=np.concatenate([np.arange(length) / FPS for length in lengths]),
        episode_ends=np.cumsum(lengths, dtype=np.int64),
    )


def tiny_features(num_rows: int, shape: tuple[int, ...] = (768,)) -> np.ndarray:
    """Random features of three views."""
    return np.random.default_rng(1).normal(size=(num_rows, 3, *shape)).astype(np.float16)


def tiny_start_frames(num_starts: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (num_starts, 3, 32, 32, 3), np.uint8)


def tiny_vector(instruction: str) -> np.ndarray:
    """A random vector of an instruction, the same one in every store."""
    numbers = np.random.default_rng(list(instruction.encode()))
    return numbers.normal(size=TEXT_WIDTH).astype(np.float32)


def tiny_environment(**changes: object) -> ComputeEnvironment:
    """A compute environment that no machine has."""
    fields = {
        "device": "cpu",
        "hardware": ("abacus",),
        "torch_version": "0",
        "library": "sums 0",
        "tf32": False,
        "compiled": False,
        "threads": 1,
        "images_per_pass": 3,
        "place_matters": False,
    }
    return ComputeEnvironment.model_validate(fields | changes)


def tiny_probe(shapes: Mapping[str, tuple[int, ...]] = MappingProxyType(POOLED)) -> Probe:
    """Random frames with random features: no encoder passes it."""
    numbers = np.random.default_rng(2)
    frames = numbers.integers(0, 256, (1, len(VIEWS), 256, 256, 3), np.uint8)
    return Probe(
        frames=frames,
        features={
            name: numbers.normal(size=(1, len(VIEWS), *shape)).astype(np.float16)
            for name, shape in shapes.items()
        },
        environment=tiny_environment(),
        tolerance=1e-3,
    )


def create_store(
    path: Path,
    lengths: tuple[int, ...],
    *,
    sources: tuple[SourceShare, ...] = (),
    validation: tuple[int, ...] | None = None,
    codec: Codec = "none",
    rows_per_unit: int = CHUNK_ROWS,
    identity: EncoderIdentity | None = None,
    probe: Probe | None = None,
    bases: Mapping[str, np.ndarray] = MappingProxyType({}),
    told: tuple[str, ...] = (),
    text_weights: str = "t" * 64,
) -> FeatureStore:
    """Create a store of random steps without features; of one source, unless told.

    `told` is the instruction of each episode, and `text_weights` tells one text encoder from
    another; nothing where there is no instruction.
    """
    words = tuple(sorted(set(told)))
    identity = identity or tiny_identity()
    probe = probe or tiny_probe({spec.name: spec.shape for spec in identity.features})
    attributes = StoreAttributes(
        encoder=identity,
        environment=probe.environment,
        codec=codec,
        rows_per_unit=rows_per_unit,
        view_names=VIEWS,
        fps=FPS,
        manifest={"name": "tiny"},
        manifest_digest="0" * 64,
        sources=sources or (SourceShare(num_episodes=len(lengths), weight=1.0),),
        validation=validation,
        fitted=tuple(sorted(bases)),
        instructions=words,
        instruction_of=tuple(map(words.index, told)),
        text_encoder=tiny_identity(text_weights, {"instruction": (TEXT_WIDTH,)}) if told else None,
    )
    return FeatureStore.create(path, attributes, tiny_steps(lengths), probe, bases)


def fill_store(store: FeatureStore, units: list[int] | None = None) -> None:
    """Write the features of some units, all by default."""
    features = {
        spec.name: tiny_features(store.num_rows, spec.shape) for spec in store.encoder.features
    }
    for unit in range(store.num_units) if units is None else units:
        start, stop = store.unit_rows(unit)
        hashes = np.arange(3 * (stop - start), dtype=np.uint64).reshape(-1, 3)
        rows = {name: values[start:stop] for name, values in features.items()}
        store.write_unit(unit, rows, hashes, {tiny_environment().digest()})


def complete_store(
    path: Path, lengths: tuple[int, ...] = (12, 9, 10), **settings: Any
) -> FeatureStore:
    """Create a store that a trainer accepts; `settings` are those of `create_store`."""
    store = create_store(path, lengths, **settings)
    fill_store(store)
    if store.attributes.text_encoder:
        store.write_instructions(np.stack([*map(tiny_vector, store.attributes.instructions)]))
    store.write_start_frames(tiny_start_frames(min(len(lengths), MAX_STARTS)))
    mark_complete(store)
    return store
