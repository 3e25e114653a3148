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
from jaxtyping import Float16, Int8, UInt64

from pipeline.features.store import FeatureStore
from policy.spec import FEATURE_DIM

RECENT_FRAMES: Final = 8_192  # different frames kept at hand; 12.6 MB of features
NEW, RECENT, STORED = range(3)  # where a frame's feature was found


@dataclass(frozen=True)
class StoredUnits:
    """Committed units of a store whose features may be copied."""

    store: FeatureStore
    units: frozenset[int]
    """Not written while they are copied from; each is checked when it is read."""


class KnownFrames:
    """The features of the last different frames, and those that stores hold."""

    def __init__(self, engine: str, stored: Sequence[StoredUnits] = ()):
        """Index the frames of stored units; 32 bytes a frame in memory.

        Args:
            engine: `EngineRecord.digest` of who computes the features that will be added.
            stored: made by the same encoder.
        """
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()
        self._engine = engine
        self._stored = stored
        hashes = [np.zeros(0, np.uint64)]
        places = [np.zeros((0, 3), np.int64)]  # which of `stored`, unit, place in the unit
        for number, held in enumerate(stored):
            for unit in sorted(held.units):
                flat = held.store.read_unit_hashes(unit).ravel()
                hashes.append(flat)
                within = np.arange(len(flat))
                places.append(np.stack(np.broadcast_arrays(number, unit, within), axis=1))
        order = np.argsort(np.concatenate(hashes), kind="stable")
        self._hashes = np.concatenate(hashes)[order]
        self._places = np.concatenate(places)[order]
        self._loaded: tuple[tuple[int, int], np.ndarray, frozenset[str]] | None = None

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
                continue
            first = int(np.searchsorted(self._hashes, frame_hash))
            if first < len(self._hashes) and self._hashes[first] == frame_hash:
                features[row], computed_by = self._copy(*map(int, self._places[first]))
                status[row] = STORED
                engines |= computed_by
        return features, status, engines

    def add(self, hashes: UInt64[np.ndarray, " n"], features: Float16[np.ndarray, "n 768"]) -> None:
        """Remember features; forgets those that were not asked for the longest."""
        for frame_hash, feature in zip(hashes, features, strict=True):
            self._recent[int(frame_hash)] = feature.copy()
        while len(self._recent) > RECENT_FRAMES:
            self._recent.popitem(last=False)

    def _copy(self, number: int, unit: int, within: int) -> tuple[np.ndarray, frozenset[str]]:
        if self._loaded is None or self._loaded[0] != (number, unit):
            store = self._stored[number].store
            features = store.read_unit_features(unit).reshape(-1, FEATURE_DIM)
            self._loaded = ((number, unit), features, store.unit_engines(unit))
        return self._loaded[1][within], self._loaded[2]
