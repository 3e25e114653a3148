"""What a store takes from its dataset apart from features: attributes, and some frames."""

from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int64, UInt8
from tqdm import tqdm

from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import DatasetError, FrameReadError
from pipeline.features.encode.config import EmbedConfig
from pipeline.features.encode.frames import read_slots
from pipeline.features.store.attributes import SourceShare, StoreAttributes
from pipeline.features.store.start_frames import MAX_STARTS, shrink_frames, spread_evenly
from pipeline.features.store.units import EpisodeSlice, choose_rows_per_unit, episode_slices
from policy.encoders.base import ImageEncoder
from policy.encoders.text import TextEncoder
from policy.spec import FRAME_SHAPE, FRAME_SIZE

PROBED_STEPS: Final = 3  # of which the probe has all views
PROBED_EPISODES: Final = 20  # tried where the first steps of others do not read
SAMPLED_STEPS: Final = 64  # control steps whose views a PCA basis is fitted to


def check_frame_sizes(path: Path, reader: ManifestReader) -> None:
    """Refuse frames (DatasetError) that would have to be resized, unless the manifest allows it."""
    if reader.loaded.manifest.resize is not None:
        return
    for episode in range(reader.num_episodes):
        for view in reader.view_names:
            size = reader.frame_size(episode, view)
            if size != FRAME_SIZE:
                raise DatasetError(
                    f"{reader.episode_name(episode)}: view {view}: expected frames of "
                    f"{FRAME_SIZE[0]}x{FRAME_SIZE[1]} pixels, found {size[0]}x{size[1]}; to resize "
                    f"all frames, write `resize = [{FRAME_SIZE[0]}, {FRAME_SIZE[1]}]` into {path}"
                )


def probe_frames(reader: ManifestReader) -> UInt8[np.ndarray, "q v 256 256 3"]:
    """Read the first steps of the first, middle and last episode; instead of bad ones, others."""
    last = reader.num_episodes - 1
    found = [np.zeros((0, len(reader.view_names), *FRAME_SHAPE), np.uint8)]
    for episode in dict.fromkeys((0, round(last / 2), last, *range(min(last, PROBED_EPISODES)))):
        if len(found) > PROBED_STEPS:
            break
        with suppress(FrameReadError):  # its unit fails with this error
            found.append(read_slots(reader, EpisodeSlice(episode, 0, 1), num_variants=0))
    return np.concatenate(found)


def sample_frames(
    reader: ManifestReader, ends: Int64[np.ndarray, " e"]
) -> UInt8[np.ndarray, "n 256 256 3"]:
    """Read every view of steps spread over the dataset, without unreadable ones."""
    rows = np.unique(np.linspace(0, ends[-1] - 1, SAMPLED_STEPS).astype(np.int64))
    found: list[np.ndarray] = []
    for row in tqdm(rows.tolist(), desc="sample", unit="step", disable=None):
        [step] = episode_slices(ends, row, row + 1)
        with suppress(FrameReadError):  # its unit fails with this error
            found.append(read_slots(reader, step, num_variants=0)[0])
    if not found:
        raise FrameReadError(
            f"{reader.episode_name(0)} and others: none of {len(rows)} sampled steps can be read; "
            "run `vla-data check` on the dataset"
        )
    return np.concatenate(found)


def start_frames(reader: ManifestReader) -> UInt8[np.ndarray, "k v 32 32 3"]:
    """Return small first frames of episodes that are spread over the dataset."""
    chosen = spread_evenly(reader.num_episodes, MAX_STARTS).tolist()
    starts = [EpisodeSlice(episode, 0, 1) for episode in chosen]
    frames = [shrink_frames(read_slots(reader, start, num_variants=0)) for start in starts]
    return np.concatenate(frames)


def describe_store(
    config: EmbedConfig,
    reader: ManifestReader,
    encoder: ImageEncoder,
    text_encoder: TextEncoder | None,
) -> StoreAttributes:
    """Return the attributes of a new store of a dataset."""
    manifest = reader.loaded.manifest
    instruction_of = [reader.instruction(episode) for episode in range(reader.num_episodes)]
    instructions = sorted(set(instruction_of)) if any(instruction_of) else []
    number_of = {instruction: number for number, instruction in enumerate(instructions)}
    attributes = StoreAttributes(
        encoder=encoder.identity,
        environment=encoder.environment,
        codec=config.codec,
        num_variants=config.num_variants,
        view_names=manifest.view_names,
        fps=manifest.fps,
        fit=manifest.fit,
        manifest=manifest.to_dict(),
        manifest_digest=manifest.digest(),
        sources=tuple(
            SourceShare(num_episodes=reader.source_of.count(number), weight=source.weight)
            for number, source in enumerate(manifest.data_sources)
        ),
        validation=reader.validation,
        instructions=tuple(instructions),
        instruction_of=tuple(number_of[one] for one in instruction_of if instructions),
        text_encoder=None if text_encoder is None else text_encoder.identity,
        fitted=tuple(sorted(encoder.bases)),
    )
    num_rows = sum(map(reader.episode_length, range(reader.num_episodes)))
    rows_per_unit = choose_rows_per_unit(num_rows, config.shard_above, attributes.bytes_per_row)
    return attributes.model_copy(update={"rows_per_unit": rows_per_unit})
