"""From a dataset's frames to committed units: read, encode, write, overlapped.

One thread reads (decodes, resizes, hashes) ahead, the caller's thread encodes, one thread writes.
Frames whose pixels were seen before are copied, not encoded; on a CPU the others go through the
encoder in passes of as many frames as there are views, which is the shape of a live pass, so that a
cached feature equals a live one bit for bit.
"""

import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float16, UInt8

from pipeline.errors import DatasetError, FrameReadError
from pipeline.features.encode.frames import (
    PIECES_AHEAD,
    FrameSource,
    Piece,
    PieceFrames,
    cut_pieces,
)
from pipeline.features.encode.known_frames import NEW, STORED, FrameIndex, KnownFrames
from pipeline.features.encode.stages import ahead
from pipeline.features.store.feature_store import FeatureStore
from policy.encoders.siglip2 import FrozenSiglip2
from policy.spec import FEATURE_DIM

Stage = Literal["compare", "read", "encode", "write"]


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
    """Time that each stage spent on it."""


@dataclass
class EncodedUnit:
    """One unit on its way to the store; grows by a piece at a time."""

    unit: int
    features: list[np.ndarray] = field(default_factory=list)
    """float16 [n, s, 768] each."""
    hashes: list[np.ndarray] = field(default_factory=list)
    """uint64 [n, s] each."""
    engines: set[str] = field(default_factory=set)
    """Digests of the engines that computed some of the features."""
    counts: EncodeCounts = field(default_factory=EncodeCounts)
    seconds: dict[Stage, float] = field(default_factory=lambda: {"read": 0.0, "encode": 0.0})


class UnitEncoder:
    """Encodes units of a store."""

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

    def encode(
        self, units: Iterable[int], advance: Callable[[int], object] = lambda steps: None
    ) -> Generator[UnitOutcome]:
        """Read, encode and commit units; idempotent and deterministic.

        While a unit is encoded, frames of the next are read and the one before is written. A frame
        that does not read fails its unit alone, which then has no rows. Close the iterator to stop
        early: units that are committed stay.

        Args:
            units: their numbers, each once, in the order in which they are encoded.
            advance: called with a number of control steps when these are done.

        Yields:
            The outcome of each unit once it is committed, or has failed.

        Raises:
            FeatureRangeError: the encoder gives no finite features.
            StoreError: a stored unit that features are copied from was damaged meanwhile.
            OSError: a unit could not be written.
        """
        for _, written in ahead(self._write, self._encode_pieces(units, advance), 1):
            yield written.result()

    def _encode_pieces(
        self, units: Iterable[int], advance: Callable[[int], object]
    ) -> Iterator[EncodedUnit]:
        failed: set[int] = set()  # no further frames of these are read
        read = ahead(self._source.read, self._unit_pieces(units, failed), PIECES_AHEAD)
        for unit, pieces in groupby(read, lambda task: task[0].unit):
            encoded = EncodedUnit(unit)
            for piece, frames in pieces:
                if unit not in failed:
                    try:
                        self._add(encoded, frames.result())
                    except (FrameReadError, DatasetError) as error:
                        failed.add(unit)
                        encoded.counts.failed_units[unit] = str(error)
                advance(piece.stop - piece.start)
            yield encoded

    def _unit_pieces(self, units: Iterable[int], failed: Collection[int]) -> Iterator[Piece]:
        for unit in units:
            for piece in cut_pieces(unit, *self._store.unit_rows(unit)):
                if unit not in failed:
                    yield piece

    def _add(self, unit: EncodedUnit, read: PieceFrames) -> None:
        """Add a piece's rows to its unit's, encoding only what is seen for the first time."""
        started = time.perf_counter()
        num_views, flat = len(self._store.attributes.view_names), read.hashes.ravel()
        first = np.sort(np.unique(flat, return_index=True)[1])  # in the order of live views
        distinct = flat[first]
        features, status, engines = self._known.look_up(distinct)
        new = status == NEW
        if new.any():
            pixels = read.frames.reshape(-1, *read.frames.shape[2:])[first[new]]
            features[new] = encode_frames(self._backbone, pixels, num_views)
            self._known.add(distinct[new], features[new])
            engines.add(self._engine)
        row_of = {int(frame_hash): row for row, frame_hash in enumerate(distinct)}
        rows = np.array([row_of[int(frame_hash)] for frame_hash in flat])
        copied, encoded = int((status[rows] == STORED).sum()), int(new.sum())
        unit.counts.copied += copied
        unit.counts.encoded += encoded
        unit.counts.repeated += len(flat) - copied - encoded
        unit.features.append(features[rows].reshape(*read.hashes.shape, FEATURE_DIM))
        unit.hashes.append(read.hashes)
        unit.engines |= engines
        unit.seconds["read"] += read.seconds
        unit.seconds["encode"] += time.perf_counter() - started

    def _write(self, unit: EncodedUnit) -> UnitOutcome:
        started = time.perf_counter()
        if not unit.counts.failed_units:
            features, hashes = np.concatenate(unit.features), np.concatenate(unit.hashes)
            self._store.write_unit(unit.unit, features, hashes, unit.engines)
        spent = unit.seconds | {"write": time.perf_counter() - started}
        return UnitOutcome(unit.unit, unit.counts, spent)


def encode_frames(
    backbone: FrozenSiglip2, frames: UInt8[np.ndarray, "n 256 256 3"], num_views: int
) -> Float16[np.ndarray, "n 768"]:
    """Encode single frames in passes of as many as there are views; the last one is filled up."""
    lacking = -len(frames) % num_views
    padded = np.concatenate([frames, np.repeat(frames[-1:], lacking, axis=0)])
    passes = torch.from_numpy(padded.reshape(-1, num_views, *frames.shape[1:]))
    features = backbone.encode_views(passes).numpy()
    return features.reshape(-1, FEATURE_DIM)[: len(frames)]
