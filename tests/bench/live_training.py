"""Windows whose features the frozen encoder computes from the dataset's frames, at every gather.

What training costs without the cache (train_speed.py), and that it gives the same losses
(tests/pipeline/training/data/test_live.py). States, actions and statistics are the stores'.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float16, Int64, UInt8
from torch import Tensor

from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.features.encode.frames import ahead, read_slots
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.units import EpisodeSlice, episode_slices
from pipeline.training.data.windows import WindowData
from policy.encoders.base import ImageEncoder

BLOCK_IMAGES: Final = 96  # read together, a whole number of passes
BLOCKS_AHEAD: Final = 2  # blocks read while the encoder runs; 19 MB each


class LiveRows:
    """One feature of every frame, as `StoredRows` gives it."""

    def __init__(self, data: "LiveWindowData", name: str):
        self._data, self._name = data, name

    def announce(self, addresses: Int64[Tensor, "*b"]) -> None:
        """Do nothing: there is nothing to read ahead."""

    def read(self, addresses: Int64[Tensor, "*b"]) -> Float16[Tensor, "..."]:
        """Encode the frames at some addresses."""
        return self._data.encode(self._name, addresses)


class LiveWindowData(WindowData):
    """Windows that take no features from the stores: the encoder computes them."""

    def __init__(
        self,
        *stores: FeatureStore,
        readers: Sequence[ManifestReader],
        encoder: ImageEncoder,
        validation_share: float,
        weights: Sequence[float] = (),
    ):
        """Load the stores' states and actions.

        Args:
            stores: as `WindowData` takes them.
            readers: of the stores' datasets, in their order.
            encoder: the one that made the stores; windows have its features.
            validation_share: as `WindowData` takes it.
            weights: as `WindowData` takes them.
        """
        super().__init__(
            *stores,
            features=encoder.feature_names,
            validation_share=validation_share,
            weights=weights,
        )
        # From here on no feature is read from a store.
        self._features = {name: LiveRows(self, name) for name in encoder.feature_names}
        self._readers = readers
        self._encoder = encoder
        self._episode_ends = self.episode_of.bincount().cumsum(0).numpy()
        self._reader_ends = np.cumsum([reader.num_episodes for reader in readers])

    def encode(self, name: str, addresses: Int64[Tensor, "*b"]) -> Float16[Tensor, "..."]:
        """Encode the frames at some addresses, each distinct one once; return one feature."""
        places, place_of = torch.unique(addresses, return_inverse=True)
        blocks = torch.split(places, BLOCK_IMAGES)
        encoded = [
            self._encoder.encode(frames, (block % self.spec.num_views).numpy())[name]
            for block, frames in zip(
                blocks, ahead(self._read_block, blocks, BLOCKS_AHEAD), strict=True
            )
        ]
        return torch.from_numpy(np.concatenate(encoded))[place_of]

    def _read_block(self, places: Int64[Tensor, " n"]) -> UInt8[np.ndarray, "n 256 256 3"]:
        """Read single frames, named by row and slot; neighbors of an episode are read at once."""
        rows, slots = np.divmod(places.numpy(), self._num_slots)
        distinct = np.unique(rows)
        runs = np.split(distinct, np.flatnonzero(np.diff(distinct) > 1) + 1)
        num_variants = int(slots.max()) // self.spec.num_views
        steps = [
            self._read_steps(part, num_variants)
            for run in runs
            for part in episode_slices(self._episode_ends, int(run[0]), int(run[-1]) + 1)
        ]
        return np.concatenate(steps)[np.searchsorted(distinct, rows), slots]

    def _read_steps(
        self, part: EpisodeSlice, num_variants: int
    ) -> UInt8[np.ndarray, "n s 256 256 3"]:
        source = int(np.searchsorted(self._reader_ends, part.episode, side="right"))
        first = int(self._reader_ends[source - 1]) if source else 0
        place = EpisodeSlice(part.episode - first, part.start, part.stop)
        return read_slots(self._readers[source], place, num_variants=num_variants)
