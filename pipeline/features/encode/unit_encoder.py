"""From a dataset's frames to committed units: decode, resize, hash, encode, write, overlapped.

Knows readers, the encoder and the store; nothing about manifests, about when to make a store or
about who encodes which unit. One thread reads ahead, the caller's encodes, one writes. Frames whose
pixels were seen before are copied, not encoded; on a CPU the others go through the encoder in
passes of as many frames as there are views, which is the shape of a live pass, so that a cached
feature equals a live one bit for bit.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from jaxtyping import Float16, Int64, UInt8, UInt64
from tqdm import tqdm

from pipeline.datasets.base import EpisodeReader
from pipeline.errors import DatasetError, FrameReadError
from pipeline.features.encode.known_frames import NEW, STORED, FrameIndex, KnownFrames
from pipeline.features.encode.stages import Stage, StageClock, ahead
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.units import EpisodeSlice, episode_slices
from policy.augment import augment_frames, draw_augmentation
from policy.encoders.siglip2 import FrozenSiglip2
from policy.images import resize_frames
from policy.spec import FEATURE_DIM

PIECE_STEPS: Final = 32  # control steps read at once; 19 MB of three views
PIECES_AHEAD: Final = 3


@dataclass
class EncodeCounts:
    """What became of frames."""

    encoded: int = 0
    """Frames that went through the encoder."""
    repeated: int = 0
    """Frames with the pixels of one that this process had encoded."""
    copied: int = 0
    """Frames whose features the store, or the one it grew from, held already."""
    failed_units: dict[int, str] = field(default_factory=dict)
    """Units that stay without rows, and why."""

    def add(self, other: "EncodeCounts") -> None:
        """Add what became of other frames."""
        self.encoded += other.encoded
        self.repeated += other.repeated
        self.copied += other.copied
        self.failed_units |= other.failed_units


@dataclass(frozen=True)
class UnitOutcome:
    """What became of one unit: it is committed, or one of its frames does not read."""

    unit: int
    counts: EncodeCounts
    seconds: dict[Stage, float]
    """Spent by whoever encoded it since the unit before."""


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one unit."""

    unit: int
    start: int
    stop: int


@dataclass
class UnitRows:
    """What is known of one unit so far, a piece at a time."""

    features: list[np.ndarray] = field(default_factory=list)
    """float16 [n, s, 768] each."""
    hashes: list[np.ndarray] = field(default_factory=list)
    """uint64 [n, s] each."""
    engines: set[str] = field(default_factory=set)
    """Digests of the engines that computed some of the features."""


class FrameSource:
    """Reads the frames of rows, hashed, in the size that the encoder takes."""

    def __init__(
        self, reader: EpisodeReader, episode_ends: Int64[np.ndarray, " e"], num_variants: int
    ):
        """Prepare; nothing is read yet.

        Args:
            reader: of a dataset.
            episode_ends: its row after each episode's last.
            num_variants: augmented variants of every frame.
        """
        self.clock = StageClock()
        self._reader = reader
        self._episode_ends = episode_ends
        self._num_variants = num_variants

    def read(
        self, piece: Piece
    ) -> tuple[UInt8[np.ndarray, "n s 256 256 3"], UInt64[np.ndarray, "n s"]]:
        """Return a piece's frames and their hashes.

        Raises:
            FrameReadError, DatasetError: a frame does not read.
        """
        frames = np.concatenate(
            [
                read_slots(self._reader, part, num_variants=self._num_variants, clock=self.clock)
                for part in episode_slices(self._episode_ends, piece.start, piece.stop)
            ]
        )
        with self.clock.measure("hash"):
            return frames, hash_frames(frames)

    def changed_units(self, store: FeatureStore, units: Iterable[int]) -> set[int]:
        """Read the frames of committed units again; return the units that hold other pixels.

        A unit whose frames do not read counts as changed: encoding it says why.
        """
        held: tuple[int, np.ndarray] = (-1, np.zeros(0))
        rows = {unit: store.unit_rows(unit) for unit in units}
        total = sum(stop - start for start, stop in rows.values())
        pieces = (piece for unit in rows for piece in _pieces(unit, *rows[unit]))
        changed = set()
        with tqdm(total=total, desc="compare", unit="step", disable=None) as progress:
            for piece, frames in ahead(self.read, pieces, PIECES_AHEAD):
                progress.update(piece.stop - piece.start)
                first = rows[piece.unit][0]
                if held[0] != piece.unit:
                    held = piece.unit, store.read_unit_hashes(piece.unit)
                expected = held[1][piece.start - first : piece.stop - first]
                try:
                    is_same = np.array_equal(frames.result()[1], expected)
                except (FrameReadError, DatasetError):
                    is_same = False
                if not is_same:
                    changed.add(piece.unit)
        return changed


class UnitEncoder:
    """Encodes units of a store; leave its `with` block to end its threads."""

    def __init__(
        self,
        store: FeatureStore,
        source: FrameSource,
        backbone: FrozenSiglip2,
        index: FrameIndex,
    ):
        """Prepare; nothing is read yet.

        Args:
            store: open for writing.
            source: of the dataset that the store was created for.
            backbone: the store's encoder.
            index: frames whose features may be copied, of none of the units to encode.

        Raises:
            StoreError: a store of the index cannot be opened.
        """
        self._store = store
        self._source = source
        self._backbone = backbone
        self._engine = backbone.engine.digest()
        self._known = KnownFrames(self._engine, index)
        self._reader = ThreadPoolExecutor(max_workers=1)
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[UnitOutcome] | None = None
        self._begun: int | None = None  # the last unit whose pieces are, or were, read
        self._unread: Iterator[Piece] = iter(())
        self._read: deque[tuple[Piece, Future[tuple[np.ndarray, np.ndarray]]]] = deque()

    def __enter__(self) -> "UnitEncoder":
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._writer.shutdown(wait=True)

    def encode_unit(
        self,
        unit: int,
        *,
        upcoming: Callable[[], int | None] = lambda: None,
        encoded: Callable[[int], None] = lambda steps: None,
    ) -> Future[UnitOutcome]:
        """Read, encode and commit one unit; the same bytes however often, and whoever does it.

        A frame that does not read stops this unit alone: it stays without rows.

        Args:
            unit: its number.
            upcoming: asked when all of the unit is being read; names the unit that comes next, if
                that is known, so that its frames are read meanwhile. It must come next then.
            encoded: told after every piece how many of the unit's steps are done with.

        Returns:
            What becomes of the unit once it is written; that goes on beside the next unit's
            encoding, and raises OSError where the disk is full.

        Raises:
            FeatureRangeError: the encoder gives no finite features.
            StoreError: a stored unit that features are copied from was damaged meanwhile.
            OSError: the unit before could not be written.
        """
        try:
            rows, counts = self._encode(unit, upcoming, encoded)
            if self._writing is not None:
                self._writing.result()
        except BaseException:
            self._drop(unit)
            raise
        self._writing = self._writer.submit(self._write, unit, rows, counts)
        return self._writing

    def _encode(
        self, unit: int, upcoming: Callable[[], int | None], encoded: Callable[[int], None]
    ) -> tuple[UnitRows, EncodeCounts]:
        rows, counts = UnitRows(), EncodeCounts()
        start, stop = self._store.unit_rows(unit)
        if self._begun != unit:
            self._begin(unit)
        while start < stop:
            self._read_ahead(upcoming)
            piece, frames = self._read.popleft()
            try:
                self._add(rows, counts, *frames.result())
            except (FrameReadError, DatasetError) as error:
                counts.failed_units[unit] = str(error)
                self._drop(unit)
                encoded(stop - start)
                break
            encoded(piece.stop - piece.start)
            start = piece.stop
        return rows, counts

    def _begin(self, unit: int) -> None:
        self._begun = unit
        self._unread = _pieces(unit, *self._store.unit_rows(unit))

    def _read_ahead(self, upcoming: Callable[[], int | None]) -> None:
        while len(self._read) <= PIECES_AHEAD:
            piece = next(self._unread, None)
            if piece is not None:
                self._read.append((piece, self._reader.submit(self._source.read, piece)))
                continue
            following = upcoming()
            if following is None or following == self._begun:
                return
            self._begin(following)

    def _drop(self, unit: int) -> None:
        """Read no more of a unit."""
        while self._read and self._read[0][0].unit == unit:
            self._read.popleft()[1].cancel()
        if self._begun == unit:
            self._unread = iter(())

    def _add(
        self,
        unit: UnitRows,
        counts: EncodeCounts,
        frames: UInt8[np.ndarray, "n s 256 256 3"],
        hashes: UInt64[np.ndarray, "n s"],
    ) -> None:
        """Add a piece's rows to its unit's, encoding only what is seen for the first time."""
        num_views, flat = len(self._store.attributes.view_names), hashes.ravel()
        first = np.sort(np.unique(flat, return_index=True)[1])  # in the order of live views
        distinct = flat[first]
        features, status, engines = self._known.look_up(distinct)
        new = status == NEW
        if new.any():
            pixels = frames.reshape(-1, *frames.shape[2:])[first[new]]
            with self._source.clock.measure("encode"):
                features[new] = encode_frames(self._backbone, pixels, num_views)
            self._known.add(distinct[new], features[new])
            engines.add(self._engine)
        row_of = {int(frame_hash): row for row, frame_hash in enumerate(distinct)}
        rows = np.array([row_of[int(frame_hash)] for frame_hash in flat])
        copied, encoded = int((status[rows] == STORED).sum()), int(new.sum())
        counts.copied += copied
        counts.encoded += encoded
        counts.repeated += len(flat) - copied - encoded
        unit.features.append(features[rows].reshape(*hashes.shape, FEATURE_DIM))
        unit.hashes.append(hashes)
        unit.engines |= engines

    def _write(self, unit: int, rows: UnitRows, counts: EncodeCounts) -> UnitOutcome:
        if not counts.failed_units:
            with self._source.clock.measure("write"):
                features, hashes = np.concatenate(rows.features), np.concatenate(rows.hashes)
                self._store.write_unit(unit, features, hashes, rows.engines)
        return UnitOutcome(unit, counts, self._source.clock.take())


def encode_frames(
    backbone: FrozenSiglip2, frames: UInt8[np.ndarray, "n 256 256 3"], num_views: int
) -> Float16[np.ndarray, "n 768"]:
    """Encode single frames in passes of as many as there are views; the last one is filled up."""
    lacking = -len(frames) % num_views
    padded = np.concatenate([frames, np.repeat(frames[-1:], lacking, axis=0)])
    passes = torch.from_numpy(padded.reshape(-1, num_views, *frames.shape[1:]))
    features = backbone.encode_views(passes).numpy()
    return features.reshape(-1, FEATURE_DIM)[: len(frames)]


def read_slots(
    reader: EpisodeReader, part: EpisodeSlice, *, num_variants: int, clock: StageClock
) -> UInt8[np.ndarray, "n s 256 256 3"]:
    """Read steps of an episode, every view as recorded and then every view of each variant.

    Frames have the size that the encoder takes. A variant is one crop and colour change for a view
    of an episode; it depends on the numbers of source, episode, view and variant alone, so that a
    dataset that grows keeps its variants.
    """
    names = reader.source_of[part.episode], reader.episode_number(part.episode)
    with clock.measure("decode"):
        views = reader.frames(part.episode, part.start, part.stop)
    with clock.measure("resize"):
        plain = [resize_frames(torch.from_numpy(view)).numpy() for view in views]
        variants = [
            augment_frames(frames, draw_augmentation(*names, view, variant))
            for variant in range(1, num_variants + 1)
            for view, frames in enumerate(plain)
        ]
        return np.stack([*plain, *variants], axis=1)


def hash_frames(frames: UInt8[np.ndarray, "n v h w 3"]) -> UInt64[np.ndarray, "n s"]:
    """Return a 64-bit BLAKE2b of every frame's pixels."""
    hashes = [
        hashlib.blake2b(np.ascontiguousarray(frame).data, digest_size=8).digest()
        for step in frames
        for frame in step
    ]
    return np.frombuffer(b"".join(hashes), np.uint64).reshape(frames.shape[:2])


def _pieces(unit: int, first: int, last: int) -> Iterator[Piece]:
    for start in range(first, last, PIECE_STEPS):
        yield Piece(unit, start, min(start + PIECE_STEPS, last))
