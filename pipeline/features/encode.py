"""From a dataset's frames to committed units: decode, resize, hash, encode, write, overlapped.

Knows readers, the encoder and the store; nothing about manifests or when to make a store. One
thread reads ahead, one encodes, one writes. Frames whose pixels were seen before are copied, not
encoded; on a CPU the others go through the encoder in passes of as many frames as there are views,
which is the shape of a live pass, so that a cached feature equals a live one bit for bit.
"""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from jaxtyping import Float16, UInt8, UInt64
from tqdm import tqdm

from pipeline.datasets.base import EpisodeReader
from pipeline.errors import DatasetError, FrameReadError
from pipeline.features.attributes import StepArrays
from pipeline.features.known_frames import NEW, STORED, KnownFrames
from pipeline.features.stages import StageClock, ahead
from pipeline.features.store import FeatureStore
from pipeline.features.units import EpisodeSlice, episode_slices
from policy.augment import augment_frames, draw_augmentation
from policy.backbone import FrozenSiglip2
from policy.preprocess import resize_frames
from policy.spec import FEATURE_DIM

PIECE_STEPS: Final = 32  # control steps read at once; 19 MB of three views
PIECES_AHEAD: Final = 3


@dataclass
class EncodeCounts:
    """What became of the frames of this run."""

    encoded: int = 0
    """Frames that went through the encoder."""
    repeated: int = 0
    """Frames with the pixels of one that this run had encoded."""
    copied: int = 0
    """Frames whose features the store, or the one it grew from, held already."""
    failed_units: dict[int, str] = field(default_factory=dict)
    """Units that stay without rows, and why."""


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one unit."""

    unit: int
    start: int
    stop: int
    is_last: bool


@dataclass
class UnitRows:
    """What is known of one unit so far, a piece at a time."""

    features: list[np.ndarray] = field(default_factory=list)
    """float16 [n, s, 768] each."""
    hashes: list[np.ndarray] = field(default_factory=list)
    """uint64 [n, s] each."""
    engines: set[str] = field(default_factory=set)
    """Digests of the engines that computed some of the features."""


class UnitEncoder:
    """Encodes missing units of a store."""

    def __init__(
        self,
        store: FeatureStore,
        reader: EpisodeReader,
        steps: StepArrays,
        backbone: FrozenSiglip2,
    ):
        """Prepare; nothing is read yet.

        Args:
            store: open for writing.
            reader: of the dataset that the store was created for.
            steps: of the same dataset.
            backbone: the store's encoder.
        """
        self.clock = StageClock()
        self.counts = EncodeCounts()
        self._store = store
        self._reader = reader
        self._steps = steps
        self._backbone = backbone
        self.engine = backbone.engine.digest()
        """Who computes the features of this run."""

    def run(self, units: Iterable[int], known: KnownFrames) -> None:
        """Encode and commit units; a frame that does not read stops its own unit alone.

        Args:
            units: none of those that `known` copies from.
            known: frames whose features may be copied; learns those of this run.
        """
        rows = {unit: self._store.unit_rows(unit) for unit in units}
        total = sum(stop - start for start, stop in rows.values())
        unit_so_far = UnitRows()
        writing: Future[None] | None = None
        progress = tqdm(total=total, desc="embed", unit="step", disable=None)
        with progress, ThreadPoolExecutor(max_workers=1) as writer:
            for piece, frames in ahead(self._read, _pieces(rows), PIECES_AHEAD):
                progress.update(piece.stop - piece.start)
                if piece.unit in self.counts.failed_units:
                    continue
                try:
                    self._add(unit_so_far, known, *frames.result())
                except (FrameReadError, DatasetError) as error:
                    self.counts.failed_units[piece.unit] = str(error)
                    unit_so_far = UnitRows()
                    continue
                if piece.is_last:
                    if writing is not None:
                        writing.result()
                    writing = writer.submit(self._write, piece.unit, unit_so_far)
                    unit_so_far = UnitRows()
            if writing is not None:
                writing.result()

    def changed_units(self, units: Iterable[int]) -> set[int]:
        """Read the frames of committed units again; return the units that hold other pixels.

        A unit whose frames do not read counts as changed: `run` says why.
        """
        held: tuple[int, np.ndarray] = (-1, np.zeros(0))
        rows = {unit: self._store.unit_rows(unit) for unit in units}
        total = sum(stop - start for start, stop in rows.values())
        changed = set()
        with tqdm(total=total, desc="compare", unit="step", disable=None) as progress:
            for piece, frames in ahead(self._read, _pieces(rows), PIECES_AHEAD):
                progress.update(piece.stop - piece.start)
                first = rows[piece.unit][0]
                if held[0] != piece.unit:
                    held = piece.unit, self._store.read_unit_hashes(piece.unit)
                expected = held[1][piece.start - first : piece.stop - first]
                try:
                    is_same = np.array_equal(frames.result()[1], expected)
                except (FrameReadError, DatasetError):
                    is_same = False
                if not is_same:
                    changed.add(piece.unit)
        return changed

    def _read(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """Return a piece's frames uint8 [n, s, 256, 256, 3] and their hashes uint64 [n, s]."""
        frames = np.concatenate(
            [
                read_slots(
                    self._reader,
                    part,
                    num_variants=self._store.attributes.num_variants,
                    clock=self.clock,
                )
                for part in episode_slices(self._steps.episode_ends, piece.start, piece.stop)
            ]
        )
        with self.clock.measure("hash"):
            return frames, hash_frames(frames)

    def _add(
        self,
        unit: UnitRows,
        known: KnownFrames,
        frames: UInt8[np.ndarray, "n s 256 256 3"],
        hashes: UInt64[np.ndarray, "n s"],
    ) -> None:
        """Add a piece's rows to its unit's, encoding only what is seen for the first time."""
        num_views, flat = len(self._store.attributes.view_names), hashes.ravel()
        first = np.sort(np.unique(flat, return_index=True)[1])  # in the order of live views
        distinct = flat[first]
        features, status, engines = known.look_up(distinct)
        new = status == NEW
        if new.any():
            pixels = frames.reshape(-1, *frames.shape[2:])[first[new]]
            with self.clock.measure("encode"):
                features[new] = encode_frames(self._backbone, pixels, num_views)
            known.add(distinct[new], features[new])
            engines.add(self.engine)
        row_of = {int(frame_hash): row for row, frame_hash in enumerate(distinct)}
        rows = np.array([row_of[int(frame_hash)] for frame_hash in flat])
        copied, encoded = int((status[rows] == STORED).sum()), int(new.sum())
        self.counts.copied += copied
        self.counts.encoded += encoded
        self.counts.repeated += len(flat) - copied - encoded
        unit.features.append(features[rows].reshape(*hashes.shape, FEATURE_DIM))
        unit.hashes.append(hashes)
        unit.engines |= engines

    def _write(self, unit: int, rows: UnitRows) -> None:
        with self.clock.measure("write"):
            features, hashes = np.concatenate(rows.features), np.concatenate(rows.hashes)
            self._store.write_unit(unit, features, hashes, rows.engines)


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


def _pieces(rows: dict[int, tuple[int, int]]) -> Iterator[Piece]:
    for unit, (first, last) in rows.items():
        for start in range(first, last, PIECE_STEPS):
            stop = min(start + PIECE_STEPS, last)
            yield Piece(unit, start, stop, is_last=stop == last)
