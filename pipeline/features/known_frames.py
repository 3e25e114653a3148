"""Frames whose features are known already: pixel-equal frames are never encoded twice.

Knows hashes and features; nothing about decoding, encoders or commits. A feature is a function of
its frame's pixels alone, so that a row may be copied wherever the same pixels come again: a camera
that sees nothing move, an episode that another dataset holds too, a dataset that has grown.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import numpy as np
from jaxtyping import Float16, Int8, UInt64

from pipeline.features.store import FeatureStore
from pipeline.features.units import UNIT_ROWS
from policy.spec import FEATURE_DIM

RECENT_FRAMES: Final = 8_192  # different frames kept at hand; 12.6 MB of features
NEW, RECENT, STORED = range(3)  # where a frame's feature was found


class KnownFrames:
    """The features of the last different frames, and those that a store holds."""

    def __init__(self, engine: str, store: FeatureStore, units: Iterable[int] = ()):
        """Index the frames of some units of a store; 16 bytes a frame in memory.

        Args:
            engine: `EngineRecord.digest` of who computes the features that will be added.
            store: made by the same encoder: another one, or this one before its frames changed.
            units: those whose features may be copied; each is checked when it is read.
        """
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()
        self._store = store
        self._units = set(units)
        self._engine = engine
        hashes = store.read_frame_hash()
        usable = np.isin(np.arange(len(hashes)) // UNIT_ROWS, sorted(self._units))
        self._places = np.flatnonzero(np.repeat(usable, hashes.shape[1]))
        self._places = self._places[np.argsort(hashes.ravel()[self._places], kind="stable")]
        self._hashes = hashes.ravel()[self._places]
        self._num_views = hashes.shape[1]
        self._loaded: tuple[int, tuple[np.ndarray, frozenset[str]]] | None = None

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
            place = self._find(frame_hash)
            if place is not None:
                unit, row_in_unit, view = place
                stored, computed_by = self._load(unit)
                features[row], status[row] = stored[row_in_unit, view], STORED
                engines |= computed_by
        return features, status, engines

    def add(self, hashes: UInt64[np.ndarray, " n"], features: Float16[np.ndarray, "n 768"]) -> None:
        """Remember features; forgets those that were not asked for the longest."""
        for frame_hash, feature in zip(hashes, features, strict=True):
            self._recent[int(frame_hash)] = feature.copy()
        while len(self._recent) > RECENT_FRAMES:
            self._recent.popitem(last=False)

    def forget(self, store: FeatureStore, units: Iterable[int]) -> None:
        """Copy no more from units of `store` that are about to be written anew."""
        if store is self._store:
            self._units -= set(units)

    def _find(self, frame_hash: np.uint64) -> tuple[int, int, int] | None:
        """Return unit, row in the unit and view of a stored frame."""
        first = int(np.searchsorted(self._hashes, frame_hash))
        for at in range(first, len(self._hashes)):
            if self._hashes[at] != frame_hash:
                break
            row, view = divmod(int(self._places[at]), self._num_views)
            unit, row_in_unit = divmod(row, UNIT_ROWS)
            if unit in self._units:
                return unit, row_in_unit, view
        return None

    def _load(self, unit: int) -> tuple[np.ndarray, frozenset[str]]:
        if self._loaded is None or self._loaded[0] != unit:
            assert self._store is not None
            held = self._store.read_unit_features(unit), self._store.unit_engines(unit)
            self._loaded = (unit, held)
        return self._loaded[1]
