"""From a dataset's frames to committed units: read, encode, write, overlapped.

A thread or processes read (decode, resize, hash) ahead, the caller's thread encodes, one writes.
Frames whose pixels were seen before are copied, not encoded; the others go through the encoder in
passes of the shape of a live pass, so that a cached feature equals a live one bit for bit.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import numpy as np

from pipeline.features.encode.frames import ChunkFrames, FrameSource, ahead
from pipeline.features.encode.known_frames import NEW, STORED, FrameIndex, KnownFrames, frame_keys
from pipeline.features.store.feature_store import FeatureStore
from policy.encoders.base import ImageEncoder

Stage = Literal["compare", "read", "encode", "write"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)


@dataclass
class EncodeCounts:
    """How many frames were encoded, and how many copied."""

    encoded: int = 0
    repeated: int = 0
    """Frames with the pixels of one that this process had encoded."""
    copied: int = 0
    """Frames whose features the store, or the one it grew from, held already."""

    def add(self, other: "EncodeCounts") -> None:
        """Add other counts."""
        self.encoded += other.encoded
        self.repeated += other.repeated
        self.copied += other.copied


@dataclass
class UnitOutcome:
    """The result of one unit: it is committed, or one of its frames does not read."""

    unit: int
    failure: str | None = None
    """Why it stays without rows."""
    counts: EncodeCounts = field(default_factory=EncodeCounts)
    seconds: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


@dataclass
class _EncodedUnit:
    """One unit on its way to the store; grows by a chunk at a time."""

    outcome: UnitOutcome
    features: list[dict[str, np.ndarray]] = field(default_factory=list)
    """By name, float16 [n, s, ...] each."""
    hashes: list[np.ndarray] = field(default_factory=list)
    """uint64 [n, s] each."""
    environments: set[str] = field(default_factory=set)
    """Digests of the environments that computed some of the features."""


class UnitEncoder:
    """Encodes units of a store."""

    def __init__(
        self, store: FeatureStore, source: FrameSource, encoder: ImageEncoder, index: FrameIndex
    ):
        """Open the stores of an index of frames whose features may be copied."""
        self._store = store
        self._source = source
        self._encoder = encoder
        self._num_views = len(store.attributes.view_names)
        self._environment = encoder.environment.digest()
        self._place_matters = encoder.environment.place_matters
        self._known = KnownFrames(
            encoder.identity.features, encoder.environment, index, max(1, source.num_workers)
        )

    def encode(
        self, units: Iterable[int], advance: Callable[[int], object] = lambda steps: None
    ) -> Generator[UnitOutcome]:
        """Read, encode and commit units in this order, and yield the outcome of each.

        While a unit is encoded, frames of the next are read and the one before is written. A frame
        that does not read fails its unit alone, which then has no rows. Close the iterator to stop
        early: units that are committed stay. `advance` is called with a number of encoded steps.

        Raises:
            FeatureRangeError: the encoder gives no finite features.
            StoreError: a stored unit that features are copied from was damaged meanwhile.
            WorkerLostError: a process that reads frames was killed.
            OSError: a unit could not be written.
        """
        yield from ahead(self._write, self._encode_chunks(units, advance), 1)

    def _encode_chunks(
        self, units: Iterable[int], advance: Callable[[int], object]
    ) -> Iterator[_EncodedUnit]:
        rows = {unit: self._store.unit_rows(unit) for unit in units}
        begun: dict[int, _EncodedUnit] = {}  # one for each process that reads
        for number, own, read in self._source.read(rows):
            unit = begun.setdefault(number, _EncodedUnit(UnitOutcome(number)))
            if isinstance(read, ChunkFrames):
                self._add(unit, read)
            else:
                unit.outcome.failure = str(read)
            advance(own.stop - own.start)
            if unit.outcome.failure is not None or own.stop == rows[number][1]:
                yield begun.pop(number)

    def _add(self, unit: _EncodedUnit, read: ChunkFrames) -> None:
        """Add a chunk's rows to its unit's, encoding only what is seen for the first time."""
        started = time.perf_counter()
        keys = frame_keys(read.hashes, self._num_views, self._place_matters).ravel()
        first = np.sort(np.unique(keys, return_index=True)[1])  # in the order of live views
        distinct = keys[first]
        features, status, environments = self._known.look_up(distinct)
        new = status == NEW
        if new.any():
            pixels, wanted = read.frames.numpy().reshape(-1, *read.frames.shape[2:]), first[new]
            if len(wanted) < len(pixels):
                pixels = pixels[wanted]
            views = wanted % read.hashes.shape[1] % self._num_views
            encoded = self._encoder.encode(pixels, views)
            for name, values in encoded.items():
                features[name][new] = values
            self._known.add(distinct[new], encoded)
            environments.add(self._environment)
        row_of = {int(key): row for row, key in enumerate(distinct)}
        rows = np.array([row_of[int(key)] for key in keys])
        copied, num_encoded = int((status[rows] == STORED).sum()), int(new.sum())
        repeated = len(keys) - copied - num_encoded
        unit.outcome.counts.add(EncodeCounts(num_encoded, repeated, copied))
        unit.features.append(
            {
                name: values[rows].reshape(*read.hashes.shape, *values.shape[1:])
                for name, values in features.items()
            }
        )
        unit.hashes.append(read.hashes)
        unit.environments |= environments
        unit.outcome.seconds["read"] += read.seconds
        unit.outcome.seconds["encode"] += time.perf_counter() - started

    def _write(self, unit: _EncodedUnit) -> UnitOutcome:
        started, outcome = time.perf_counter(), unit.outcome
        if outcome.failure is None:
            features, hashes = joined(unit.features), np.concatenate(unit.hashes)
            self._store.write_unit(outcome.unit, features, hashes, unit.environments)
        outcome.seconds["write"] += time.perf_counter() - started
        return outcome


def joined(slices: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join consecutive rows of features by name."""
    return {name: np.concatenate([rows[name] for rows in slices]) for name in slices[0]}
