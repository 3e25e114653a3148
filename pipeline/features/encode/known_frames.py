"""Frames whose features are known already: pixel-equal frames are never encoded twice.

A feature is a function of its frame's pixels (and of the frame's place in a pass if the encoder's
kernels make it so), so that a row may be copied wherever the same pixels return: a camera that sees
nothing move, an episode that another dataset has too, a dataset that has grown.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from jaxtyping import Float16, Int8, Int64, UInt, UInt64

from pipeline.features.store.feature_store import FeatureStore
from pipeline.storage.location import Location
from policy.encoders.environment import ComputeEnvironment
from policy.spec import FeatureSpec

RECENT_FRAMES: Final = 8_192  # different frames kept in memory; 12.6 MB of 1,536 bytes each
RECENT_BYTES: Final = 64 * 10**6  # fewer frames of larger features
PLACE_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads any number
NEW, RECENT, STORED = range(3)  # where a frame's feature was found


StoredUnits = tuple[FeatureStore, Collection[int]]
"""Committed units of a store, which are not written while features are copied from them."""


@dataclass(frozen=True)
class FrameIndex:
    """Where the features of stored frames are; 12 bytes per frame, picklable for other processes.

    The frames of all units are numbered, unit after unit; that number is a frame's position.
    """

    stores: tuple[Location, ...]
    units: Int64[np.ndarray, "u 2"]
    """Which of `stores`, and the number of the unit in it."""
    ends: Int64[np.ndarray, " u"]
    """Position after each unit's last."""
    hashes: UInt64[np.ndarray, " n"]
    """`frame_keys` of every frame, sorted."""
    positions: UInt[np.ndarray, " n"]
    """Of the frames behind `hashes`; uint32 below 2^32 frames."""

    @classmethod
    def of(cls, stored: Sequence[StoredUnits], *, place_matters: bool) -> "FrameIndex":
        """Index the frames of committed units, all by one encoder (StoreError: one is damaged)."""
        units: list[tuple[int, int]] = []
        keys = [np.empty(0, np.uint64)]
        for number, (store, held) in enumerate(stored):
            num_views = len(store.attributes.view_names)
            for unit in sorted(held):
                units.append((number, unit))
                hashes = store.read_unit_hashes(unit)
                keys.append(frame_keys(hashes, num_views, place_matters).ravel())
        sizes, joined = [len(own) for own in keys[1:]], np.concatenate(keys)
        del keys  # tens of millions of frames
        order = np.argsort(joined, kind="stable")
        return cls(
            stores=tuple(store.path for store, _ in stored),
            units=np.array(units, np.int64).reshape(-1, 2),
            ends=np.cumsum(sizes, dtype=np.int64),
            hashes=joined[order],
            positions=order.astype(np.uint32 if len(order) < 2**32 else np.uint64),
        )

    def find(self, hashes: UInt64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
        """Return the position of each frame, -1 if no stored unit holds it."""
        if not len(self.hashes):
            return np.full(len(hashes), -1)
        nearest = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        is_held = self.hashes[nearest] == hashes
        return np.where(is_held, self.positions[nearest].astype(np.int64), -1)


class KnownFrames:
    """The features of the last different frames, and the features in stores."""

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        environment: ComputeEnvironment,
        index: FrameIndex,
        units_at_once: int = 1,
    ):
        """Open the stores of an index; `environment` computes the frames that will be added.

        As many stored units stay in memory as are encoded by turns, `units_at_once`.
        """
        self._specs = features
        size = sum(spec.num_bytes for spec in features)
        self._num_recent = min(RECENT_FRAMES, RECENT_BYTES // size)
        self._recent: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()
        self._environment = environment.digest()
        self._index = index
        self._stores = [FeatureStore.open(path, allow_incomplete=True) for path in index.stores]
        self._load = lru_cache(maxsize=units_at_once)(self._load_unit)

    def look_up(
        self, keys: UInt64[np.ndarray, " n"]
    ) -> tuple[dict[str, Float16[np.ndarray, "n ..."]], Int8[np.ndarray, " n"], set[str]]:
        """Look up the features of frames by their `frame_keys`.

        Returns:
            The features by name, zeros for new frames; where each was found (STORED, RECENT or
            NEW); and the digests of the environments that computed the features found.
        """
        features = {
            spec.name: np.zeros((len(keys), *spec.shape), np.float16) for spec in self._specs
        }
        status = np.full(len(keys), NEW, np.int8)
        environments: set[str] = set()
        positions = self._index.find(keys)
        # Sorted, so that a unit is read once for all of its frames.
        for row in np.argsort(positions, kind="stable").tolist():
            found = self._recent.get(int(keys[row]))
            if found is not None:
                self._recent.move_to_end(int(keys[row]))
                status[row] = RECENT
                environments.add(self._environment)
            elif positions[row] >= 0:
                which = int(np.searchsorted(self._index.ends, positions[row], side="right"))
                held, computed_in = self._load(which)
                place = positions[row] - self._index.ends[which]  # counted from the end
                found = {name: rows[place] for name, rows in held.items()}
                status[row] = STORED
                environments.update(computed_in)
            for name, values in (found or {}).items():
                features[name][row] = values
        return features, status, environments

    def add(
        self, keys: UInt64[np.ndarray, " n"], features: Mapping[str, Float16[np.ndarray, "n ..."]]
    ) -> None:
        """Add features, and drop the least recently used ones."""
        for row, key in enumerate(keys):
            self._recent[int(key)] = {name: rows[row].copy() for name, rows in features.items()}
        while len(self._recent) > self._num_recent:
            self._recent.popitem(last=False)

    def _load_unit(self, which: int) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        number, unit = map(int, self._index.units[which])
        store = self._stores[number]
        flat = {
            name: rows.reshape(-1, *rows.shape[2:])
            for name, rows in store.read_unit_features(unit).items()
        }
        return flat, store.unit_record(unit).environments


def frame_keys(
    frame_hash: UInt64[np.ndarray, "n s"], num_views: int, place_matters: bool
) -> UInt64[np.ndarray, "n s"]:
    """Return what decides the features of frames: their pixels and, if it matters, their view.

    `num_views` is the number of cameras: slot s shows view s modulo this number.
    """
    if not place_matters:
        return frame_hash
    views = np.arange(frame_hash.shape[1], dtype=np.uint64) % np.uint64(num_views)
    return np.asarray(frame_hash + views * PLACE_FACTOR)  # modulo 2^64
