"""From a dataset's files to frames that the encoder takes: decoded, resized, augmented, hashed.

Either a thread of this process reads, or worker processes do, each a consecutive share of the units
from its first frame to its last: so every file is opened by one worker, or by two where their
shares meet, and a video is decoded forward. Frames come back through shared memory.
"""

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, TypeVar

import numpy as np
import torch
import xxhash
from jaxtyping import Int64, UInt8, UInt64
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from pipeline.datasets.manifest.model import LoadedManifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import FrameReadError, WorkerLostError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.units import EpisodeSlice, cut, episode_slices
from pipeline.processes import end_with_parent
from policy.errors import VlaError
from policy.images import augment_images, draw_augmentation, resize_images

CHUNK_STEPS: Final = 32  # control steps read at once; 19 MB of three views
CHUNKS_AHEAD: Final = 3
MOST_WORKERS: Final = 32  # processes; at 300 images per second each, more than a GPU encodes

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ChunkFrames:
    """The frames of a chunk, in the size that the encoder takes."""

    frames: UInt8[Tensor, "n s 256 256 3"]
    hashes: UInt64[np.ndarray, "n s"]
    seconds: float

    def pin_memory(self) -> "ChunkFrames":
        """Copy the frames to memory that a GPU copies from by itself; DataLoader calls this."""
        return replace(self, frames=self.frames.pin_memory())


Rows = Mapping[int, tuple[int, int]]
"""The rows [first, last) of units, in the order in which they are read."""
ReadChunk = tuple[int, slice, ChunkFrames | FrameReadError]
"""A unit, consecutive rows of it, and their frames."""


@dataclass(frozen=True)
class FrameSource:
    """Reads the frames of units, hashed, in the size that the encoder takes."""

    reader: ManifestReader
    episode_ends: Int64[np.ndarray, " e"]
    num_variants: int
    num_workers: int = 0
    """See `EmbedConfig.read_workers`."""
    is_pinned: bool = False
    """Whether frames come in memory that a GPU copies from by itself."""

    def read(self, rows: Rows) -> Iterator[ReadChunk]:
        """Read units ahead of the caller; close the iterator to stop early.

        Yields:
            The chunks of a unit in order; those of several workers' units as they come. A chunk
            that does not read comes as its error, and is the last of its unit.

        Raises:
            WorkerLostError: a worker was killed, or has no shared memory left.
            VlaError: a worker cannot open the dataset.
        """
        chunks = (
            self._from_workers(rows)
            if self.num_workers and rows
            else _read_units(self.reader, self.episode_ends, self.num_variants, rows)
        )
        # In a thread: in the main one, torch's DataLoader would raise at any line if a worker dies.
        for chunk in ahead(lambda _: next(chunks, None), itertools.count(), CHUNKS_AHEAD):
            if chunk is None:
                return
            yield chunk

    def changed_units(
        self, store: FeatureStore, units: Iterable[int]
    ) -> tuple[set[int], dict[int, str]]:
        """Return which committed units hold other pixels now, and why others do not read."""
        rows = {unit: store.unit_rows(unit) for unit in units}
        total = sum(map(store.num_unit_rows, rows))
        held = lru_cache(max(1, self.num_workers))(store.read_unit_hashes)
        changed, unread = set(), {}
        with tqdm(total=total, desc="compare", unit="step", disable=None) as progress:
            for unit, own, read in self.read(rows):
                progress.update(own.stop - own.start)
                first, _ = rows[unit]
                expected = held(unit)[own.start - first : own.stop - first]
                if isinstance(read, Exception):
                    unread[unit] = str(read)
                elif not np.array_equal(read.hashes, expected):
                    changed.add(unit)
        return changed, unread

    def _from_workers(self, rows: Rows) -> Iterator[ReadChunk]:
        loader: Iterable[ReadChunk | VlaError] = DataLoader(
            _WorkerFrames(self.reader.loaded, self.episode_ends, self.num_variants, rows),
            batch_size=None,
            num_workers=min(self.num_workers, len(rows)),
            multiprocessing_context="spawn",  # HDF5 and object storage have threads and locks
            pin_memory=self.is_pinned,
            in_order=False,  # of workers; each has units of its own
            worker_init_fn=_end_with_parent,
        )
        try:
            for item in loader:
                if isinstance(item, VlaError):
                    raise item
                yield item
        except VlaError:
            raise
        except (RuntimeError, OSError, EOFError) as error:
            found = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise WorkerLostError(
                f"a process that reads frames was lost ({found}); committed units are "
                f"kept; check the memory, of which /dev/shm needs 60 MB per process, and run the "
                f"same command again, or with fewer: --set read_workers=1"
            ) from error


@dataclass(frozen=True)
class _WorkerFrames(IterableDataset[ReadChunk | VlaError]):
    """In each worker process, its share of the units."""

    loaded: LoadedManifest
    episode_ends: Int64[np.ndarray, " e"]
    num_variants: int
    rows: Rows

    def __iter__(self) -> Iterator[ReadChunk | VlaError]:
        worker = get_worker_info()
        assert worker is not None
        share = np.array_split(list(self.rows), worker.num_workers)[worker.id].tolist()
        rows = {unit: self.rows[unit] for unit in share}
        try:
            with closing(ManifestReader(self.loaded)) as reader:
                chunks = _read_units(reader, self.episode_ends, self.num_variants, rows)
                for unit, own, read in chunks:
                    if isinstance(read, ChunkFrames):  # here the parent hears of full memory
                        read.frames.share_memory_()  # type: ignore[no-untyped-call]
                    yield unit, own, read
        except VlaError as error:
            yield error


def _end_with_parent(_worker: int) -> None:
    # torch's own check learns its parent only once the worker runs: too late if that was killed.
    end_with_parent()


def free_cores() -> int:
    """Return how many worker processes this process has cores for, besides itself."""
    return min(max(1, len(os.sched_getaffinity(0)) - 1), MOST_WORKERS)


def _read_units(
    reader: ManifestReader, episode_ends: Int64[np.ndarray, " e"], num_variants: int, rows: Rows
) -> Iterator[ReadChunk]:
    for unit, (first, last) in rows.items():
        for own in cut(first, last, CHUNK_STEPS):
            started = time.perf_counter()
            try:
                slots = [
                    read_slots(reader, steps, num_variants=num_variants)
                    for steps in episode_slices(episode_ends, own.start, own.stop)
                ]
            except FrameReadError as error:
                yield unit, own, error
                break
            frames = np.concatenate(slots) if len(slots) > 1 else slots[0]
            hashes = hash_frames(frames)
            spent = time.perf_counter() - started
            yield unit, own, ChunkFrames(torch.from_numpy(frames), hashes, spent)


def read_slots(
    reader: ManifestReader, steps: EpisodeSlice, *, num_variants: int
) -> UInt8[np.ndarray, "n s 256 256 3"]:
    """Read steps of an episode in the encoder's size: every view, then every view of each variant.

    A variant is one crop and color change for a view of an episode. It depends only on the numbers
    of source, episode, view and variant, so that a dataset that grows keeps its variants.
    FrameReadError: a frame does not read.
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


def ahead(do: Callable[[Task], Result], tasks: Iterable[Task], depth: int) -> Iterator[Result]:
    """Run `do` on tasks in a thread, at most `depth` ahead of the caller; yield each result."""
    pool = ThreadPoolExecutor(max_workers=1)
    try:
        waiting: deque[Future[Result]] = deque()
        for task in tasks:
            waiting.append(pool.submit(do, task))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
