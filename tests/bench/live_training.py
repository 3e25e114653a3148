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

from pipeline.datasets.base import EpisodeReader
from pipeline.features.encode.frames import read_slots
from pipeline.features.encode.stages import ahead
from pipeline.features.encode.unit_encoder import encode_frames
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.units import EpisodeSlice, episode_slices
from pipeline.training.data.windows import WindowData
from policy.encoders.siglip2 import GPU_STEPS_PER_PASS, FrozenSiglip2

BLOCKS_AHEAD: Final = 2  # blocks of frames read while the encoder runs; 38 MB each of three views


class LiveWindowData(WindowData):
    """Windows that take no features from the stores: the encoder computes them."""

    def __init__(
        self,
        *stores: FeatureStore,
        readers: Sequence[EpisodeReader],
        encoder: FrozenSiglip2,
        heldout_share: float,
        weights: Sequence[float] = (),
    ):
        """Load the stores' states and actions.

        Args:
            stores: as `WindowData` takes them.
            readers: of the stores' datasets, in their order.
            encoder: the one that made the stores.
            heldout_share: as `WindowData` takes it.
            weights: as `WindowData` takes them.
        """
        super().__init__(*stores, heldout_share=heldout_share, weights=weights)
        self._readers = readers
        self._encoder = encoder
        self._num_slots = stores[0].attributes.num_slots
        self._episode_ends = self.episode_of.bincount().cumsum(0).numpy()
        self._reader_ends = np.cumsum([reader.num_episodes for reader in readers])

    def observed_features(
        self, observed: Int64[Tensor, "b t"], variants: Int64[Tensor, "b v"] | None
    ) -> Float16[Tensor, "b t v 768"]:
        """Encode the frames of the rows `observed`, each distinct one once."""
        num_views = self.spec.num_views
        slots = torch.arange(num_views)
        if variants is not None:
            slots = variants[:, None] * num_views + slots
        places, place_of = torch.unique(
            observed[:, :, None] * self._num_slots + slots, return_inverse=True
        )
        blocks = torch.split(places, GPU_STEPS_PER_PASS * num_views)
        features = [
            encode_frames(self._encoder, frames.result(), num_views)
            for _, frames in ahead(self._read_block, blocks, BLOCKS_AHEAD)
        ]
        return torch.from_numpy(np.concatenate(features))[place_of]

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
