"""Frames whose features are known already: pixel-equal frames are never encoded twice.

Knows hashes and features; nothing about decoding, encoders or commits. A feature is a function of
its frame's pixels alone, so that a row may be copied wherever the same pixels come again: a camera
that sees nothing move, an episode that another dataset holds too, a dataset that has grown.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float16, Int8, Int64, UInt, UInt64

from pipeline.features.store.feature_store import FeatureStore
from pipeline.storage.location import Location
from policy.spec import FEATURE_DIM

RECENT_FRAMES: Final = 8_192  # different frames kept at hand; 12.6 MB of features
NEW, RECENT, STORED = range(3)  # where a frame's feature was found


@dataclass(frozen=True)
class StoredUnits:
    """Committed units of a store whose features may be copied."""

    store: FeatureStore
    units: frozenset[int]
    """Not written while they are copied from; each is checked when it is read."""


@dataclass(frozen=True)
class FrameIndex:
    """Where the features of stored frames lie; 12 bytes a frame, picklable for other processes.

    The frames of all units are counted through, unit after unit; that number is a frame's place.
    """

    stores: tuple[Location, ...]
    units: Int64[np.ndarray, "u 2"]
    """Which of `stores`, and the number of the unit in it."""
    ends: Int64[np.ndarray, " u"]
    """Place after each unit's last."""
    hashes: UInt64[np.ndarray, " n"]
    """Of every frame, sorted."""
    places: UInt[np.ndarray, " n"]
    """Of the frames behind `hashes`; uint32 below 2^32 frames."""

    @classmethod
    def of(cls, stored: Sequence[StoredUnits]) -> "FrameIndex":
        """Index the frames of stored units.

        Args:
            stored: made by the same encoder.

        Raises:
            StoreError: a unit was damaged since it was found valid.
        """
        units = [
            (number, unit) for number, held in enumerate(stored) for unit in sorted(held.units)
        ]
        stores = [held.store for held in stored]
        rows = [stores[number].unit_rows(unit) for number, unit in units]
        slots = [stores[number].attributes.num_slots for number, _ in units]
        sizes = [(stop - start) * width for (start, stop), width in zip(rows, slots, strict=True)]
        ends = np.cumsum([0, *sizes], dtype=np.int64)
        hashes = np.empty(ends[-1], np.uint64)
        for (number, unit), start, stop in zip(units, ends[:-1], ends[1:], strict=True):
            hashes[start:stop] = stores[number].read_unit_hashes(unit).ravel()
        places = _sorting(hashes)
        hashes.sort()
        return cls(
            stores=tuple(store.path for store in stores),
            units=np.array(units, np.int64).reshape(-1, 2),
            ends=ends[1:],
            hashes=hashes,
            places=places,
        )

    def find(self, hashes: UInt64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
        """Return the place of each frame, -1 where no stored unit holds it."""
        if not len(self.hashes):
            return np.full(len(hashes), -1)
        first = np.searchsorted(self.hashes, hashes)
        nearest = np.minimum(first, len(self.hashes) - 1)
        is_held = self.hashes[nearest] == hashes
        return np.where(is_held, self.places[nearest].astype(np.int64), -1)


class KnownFrames:
    """The features of the last different frames, and those that stores hold."""

    def __init__(self, engine: str, index: FrameIndex):
        """Open the stores of an index.

        Args:
            engine: `EngineRecord.digest` of who computes the features that will be added.
            index: of units whose features may be copied.

        Raises:
            StoreError: a store cannot be opened.
        """
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()
        self._engine = engine
        self._index = index
        self._stores = [FeatureStore.open(path, allow_incomplete=True) for path in index.stores]
        self._loaded: tuple[int, np.ndarray, frozenset[str]] | None = None

    def look_up(
        self, hashes: UInt64[np.ndarray, " n"]
    ) -> tuple[Float16[np.ndarray, "n 768"], Int8[np.ndarray, " n"], set[str]]:
        """Return the features of frames, and where each was found: STORED, RECENT or NEW.

        Returns:
            The features, zeros for new frames; where each was found; and the digests of the
            engines that computed those that were found.
        """
        features = np.zeros((len(hashes), FEATURE_DIM), np.float16)
        status = np.full(len(hashes), NEW, np.int8)
        engines: set[str] = set()
        for row, frame_hash in enumerate(hashes):
            recent = self._recent.get(int(frame_hash))
            if recent is not None:
                self._recent.move_to_end(int(frame_hash))
                features[row], status[row] = recent, RECENT
                engines.add(self._engine)
        places = np.where(status == RECENT, -1, self._index.find(hashes))
        for row in np.argsort(places, kind="stable"):  # a unit's frames together: it is read once
            if places[row] >= 0:
                features[row], computed_by = self._copy(int(places[row]))
                status[row] = STORED
                engines |= computed_by
        return features, status, engines

    def add(self, hashes: UInt64[np.ndarray, " n"], features: Float16[np.ndarray, "n 768"]) -> None:
        """Remember features; forgets those that were not asked for the longest."""
        for frame_hash, feature in zip(hashes, features, strict=True):
            self._recent[int(frame_hash)] = feature.copy()
        while len(self._recent) > RECENT_FRAMES:
            self._recent.popitem(last=False)

    def _copy(self, place: int) -> tuple[np.ndarray, frozenset[str]]:
        which = int(np.searchsorted(self._index.ends, place, side="right"))
        if self._loaded is None or self._loaded[0] != which:
            number, unit = map(int, self._index.units[which])
            store = self._stores[number]
            features = store.read_unit_features(unit).reshape(-1, FEATURE_DIM)
            self._loaded = which, features, store.unit_engines(unit)
        _, features, engines = self._loaded
        return features[place - int(self._index.ends[which])], engines  # counted from the end


def _sorting(hashes: UInt64[np.ndarray, " n"]) -> UInt[np.ndarray, " n"]:
    """Return what sorts the hashes, equal ones in their order, in little memory besides.

    A sixteenth of the hashes is sorted at a time, for numpy's own order has 64 bits a number.
    """
    order = np.empty(len(hashes), np.uint32 if len(hashes) < 2**32 else np.uint64)
    top = hashes.astype("<u8", copy=False).view(np.uint8)[7::8] >> 4
    filled = 0
    for sixteenth in range(16):
        places = np.flatnonzero(top == sixteenth)
        places = places[np.argsort(hashes[places], kind="stable")]
        order[filled : filled + len(places)] = places
        filled += len(places)
    return order
