"""From a dataset's files to frames that the encoder takes: decoded, resized, augmented, hashed."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import xxhash
from jaxtyping import Int64, UInt8, UInt64
from tqdm import tqdm

from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import DatasetError, FrameReadError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.units import EpisodeSlice, episode_slices
from policy.images import augment_images, draw_augmentation, resize_images

CHUNK_STEPS: Final = 32  # control steps read at once; 19 MB of three views
CHUNKS_AHEAD: Final = 3

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FrameChunk:
    """Consecutive rows of one unit."""

    unit: int
    start: int
    stop: int


@dataclass(frozen=True)
class ChunkFrames:
    """The frames of a chunk, in the size that the encoder takes."""

    frames: UInt8[np.ndarray, "n s 256 256 3"]
    hashes: UInt64[np.ndarray, "n s"]
    seconds: float
    """Time that reading them took."""


class FrameSource:
    """Reads the frames of rows, hashed, in the size that the encoder takes."""

    def __init__(
        self, reader: ManifestReader, episode_ends: Int64[np.ndarray, " e"], num_variants: int
    ):
        self._reader = reader
        self._episode_ends = episode_ends
        self._num_variants = num_variants

    def read(self, chunk: FrameChunk) -> ChunkFrames:
        """Read a chunk's frames (FrameReadError, DatasetError: one does not read)."""
        started = time.perf_counter()
        frames = np.concatenate(
            [
                read_slots(self._reader, steps, num_variants=self._num_variants)
                for steps in episode_slices(self._episode_ends, chunk.start, chunk.stop)
            ]
        )
        hashes = hash_frames(frames)
        return ChunkFrames(frames, hashes, time.perf_counter() - started)

    def changed_units(self, store: FeatureStore, units: Iterable[int]) -> set[int]:
        """Read the frames of committed units again; return the units that hold other pixels.

        A unit whose frames do not read counts as changed: encoding it reports the error.
        """
        held: tuple[int, np.ndarray] = (-1, np.zeros(0))
        rows = {unit: store.unit_rows(unit) for unit in units}
        total = sum(map(store.num_unit_rows, rows))
        chunks = (chunk for unit in rows for chunk in cut_chunks(unit, *rows[unit]))
        changed = set()
        with tqdm(total=total, desc="compare", unit="step", disable=None) as progress:
            for chunk, frames in ahead(self.read, chunks, CHUNKS_AHEAD):
                progress.update(chunk.stop - chunk.start)
                first = rows[chunk.unit][0]
                if held[0] != chunk.unit:
                    held = chunk.unit, store.read_unit_hashes(chunk.unit)
                expected = held[1][chunk.start - first : chunk.stop - first]
                try:
                    is_same = np.array_equal(frames.result().hashes, expected)
                except (FrameReadError, DatasetError):
                    is_same = False
                if not is_same:
                    changed.add(chunk.unit)
        return changed


def read_slots(
    reader: ManifestReader, steps: EpisodeSlice, *, num_variants: int
) -> UInt8[np.ndarray, "n s 256 256 3"]:
    """Read steps of an episode in the encoder's size: every view, then every view of each variant.

    A variant is one crop and color change for a view of an episode. It depends only on the numbers
    of source, episode, view and variant, so that a dataset that grows keeps its variants.

    Raises:
        FrameReadError, DatasetError: a frame does not read.
    """
    names = reader.source_of[steps.episode], reader.episode_number(steps.episode)
    views = reader.frames(steps.episode, steps.start, steps.stop)
    plain = [resize_images(view, reader.fit) for view in views]
    variants = [
        augment_images(frames, draw_augmentation(*names, view, variant))
        for variant in range(1, num_variants + 1)
        for view, frames in enumerate(plain)
    ]
    return np.stack([*plain, *variants], axis=1)


def hash_frames(frames: UInt8[np.ndarray, "n v h w 3"]) -> UInt64[np.ndarray, "n s"]:
    """Return the 64-bit XXH3 of every frame's pixels."""
    hashes = [
        [xxhash.xxh3_64_intdigest(np.ascontiguousarray(frame).data) for frame in step]
        for step in frames
    ]
    return np.array(hashes, np.uint64).reshape(frames.shape[:2])


def cut_chunks(unit: int, first: int, last: int) -> Iterator[FrameChunk]:
    """Cut the rows [first, last) of a unit into chunks."""
    for start in range(first, last, CHUNK_STEPS):
        yield FrameChunk(unit, start, min(start + CHUNK_STEPS, last))


def ahead(
    do: Callable[[Task], Result], tasks: Iterable[Task], depth: int
) -> Iterator[tuple[Task, Future[Result]]]:
    """Run `do` on tasks in a thread, at most `depth` of them ahead of the caller.

    Yields:
        Every task in order, and its result; the task's error is raised by `result()`.
    """
    pool = ThreadPoolExecutor(max_workers=1)
    try:
        waiting: deque[tuple[Task, Future[Result]]] = deque()
        for task in tasks:
            waiting.append((task, pool.submit(do, task)))
            if len(waiting) > depth:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
