"""Windows whose features the frozen tower computes from the dataset's frames, at every gather.

It exists to prove the cache: on the engine of the stores, a training that runs the tower at every
step gives the same bits as one that reads the stores. Knows stores, datasets and the encoder;
frames take the way that embedding gives them. States, actions and statistics are the stores'.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Final

import numpy as np
import torch
from jaxtyping import Float16, Int64, UInt8
from torch import Tensor

from pipeline.datasets.base import EpisodeReader
from pipeline.errors import StoreError
from pipeline.features.encode.frames import hash_frames, read_slots
from pipeline.features.encode.stages import ahead
from pipeline.features.encode.unit_encoder import encode_frames
from pipeline.features.identity.dataset import open_source
from pipeline.features.identity.encoder import load_same_encoder
from pipeline.features.identity.probe import check_probe
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.units import EpisodeSlice, episode_slices
from pipeline.training.data.windows import WindowData
from policy.encoders.siglip2 import GPU_STEPS_PER_PASS, FrozenSiglip2

BLOCKS_AHEAD: Final = 2  # blocks of frames read while the tower runs; 38 MB each of three views


class LiveWindowData(WindowData):
    """Windows that read their features from nowhere: the tower makes them."""

    def __init__(
        self,
        *stores: FeatureStore,
        readers: Sequence[EpisodeReader],
        encoder: FrozenSiglip2,
        heldout_share: float,
        weights: Sequence[float] = (),
    ):
        """Load the stores' states, actions and frame hashes.

        Args:
            stores: as `WindowData` takes them.
            readers: of the stores' datasets, in their order.
            encoder: the one that made the stores.
            heldout_share: as `WindowData` takes it.
            weights: as `WindowData` takes them.

        Raises:
            StoreError, ConfigError: as `WindowData` raises them.
        """
        super().__init__(*stores, heldout_share=heldout_share, weights=weights)
        self._readers = readers
        self.encoder = encoder
        self._num_slots = stores[0].attributes.num_slots
        self._episode_ends = self.episode_of.bincount().cumsum(0).numpy()
        self._reader_ends = np.cumsum([reader.num_episodes for reader in readers])
        hashes = [s.read_unit_hashes(unit) for s in stores for unit in range(s.num_units)]
        self._frame_hash = np.concatenate(hashes)

    def observed_features(
        self, observed: Int64[Tensor, "b t"], variants: Int64[Tensor, "b v"] | None
    ) -> Float16[Tensor, "b t v 768"]:
        """Encode the frames of the rows `observed`, each distinct one once.

        Raises:
            FrameReadError, DatasetError: a frame does not read.
            StoreError: a frame is not the one that was embedded.
        """
        num_views = self.spec.num_views
        slots = torch.arange(num_views)
        if variants is not None:
            slots = variants[:, None] * num_views + slots
        places, place_of = torch.unique(
            observed[:, :, None] * self._num_slots + slots, return_inverse=True
        )
        blocks = torch.split(places, GPU_STEPS_PER_PASS * num_views)
        features = [
            encode_frames(self.encoder, frames.result(), num_views)
            for _, frames in ahead(self._read_block, blocks, BLOCKS_AHEAD)
        ]
        return torch.from_numpy(np.concatenate(features))[place_of]

    def _read_block(self, places: Int64[Tensor, " n"]) -> UInt8[np.ndarray, "n 256 256 3"]:
        """Read single frames, named by row and slot; neighbours of an episode are read at once."""
        rows, slots = np.divmod(places.numpy(), self._num_slots)
        distinct = np.unique(rows)
        runs = np.split(distinct, np.flatnonzero(np.diff(distinct) > 1) + 1)
        num_variants = int(slots.max()) // self.spec.num_views
        steps = [
            self._read_steps(part, num_variants)
            for run in runs
            for part in episode_slices(self._episode_ends, int(run[0]), int(run[-1]) + 1)
        ]
        frames = np.concatenate(steps)[np.searchsorted(distinct, rows), slots]
        is_changed = hash_frames(frames[None])[0] != self._frame_hash[rows, slots]
        if is_changed.any():
            self._refuse_changed(int(rows[is_changed][0]), int(slots[is_changed][0]))
        return frames

    def _read_steps(
        self, part: EpisodeSlice, num_variants: int
    ) -> UInt8[np.ndarray, "n s 256 256 3"]:
        reader, episode = self._locate(part.episode)
        place = EpisodeSlice(episode, part.start, part.stop)
        return read_slots(reader, place, num_variants=num_variants)

    def _locate(self, episode: int) -> tuple[EpisodeReader, int]:
        """Return the reader of an episode, and the number that the episode has there."""
        source = int(np.searchsorted(self._reader_ends, episode, side="right"))
        first = int(self._reader_ends[source - 1]) if source else 0
        return self._readers[source], episode - first

    def _refuse_changed(self, row: int, slot: int) -> None:
        part = next(episode_slices(self._episode_ends, row, row + 1))
        reader, episode = self._locate(part.episode)
        raise StoreError(
            f"{reader.episode_name(episode)}, step {part.start}, view "
            f"{self.spec.view_names[slot % self.spec.num_views]}: pixels are not those that were "
            f"embedded; run vla-embed again, or restore the dataset"
        )


@contextmanager
def open_live_windows(
    *stores: FeatureStore,
    heldout_share: float,
    weights: Sequence[float] = (),
    backbone: str | None = None,
    device: torch.device | None = None,
) -> Iterator[LiveWindowData]:
    """Open the stores' encoder and datasets; the datasets are closed on the way out.

    Args:
        stores: as `WindowData` takes them.
        heldout_share: as `WindowData` takes it.
        weights: as `WindowData` takes them.
        backbone: where the encoder lies now; None takes the name in the stores.
        device: where the tower runs; None is the CPU.

    Raises:
        StoreError, ConfigError: as `WindowData` raises them; a store's dataset is not known, or is
            another one now.
        ManifestError, DatasetError: a dataset cannot be read.
        EncoderLoadError, EncoderMismatchError: the encoder cannot be loaded, or gives a store's
            probe other features than it had.
    """
    made_by, where = stores[0].attributes.encoder, str(stores[0].path)
    encoder = load_same_encoder(made_by, backbone, where=where, device=device)
    with ExitStack() as opened:
        readers = [opened.enter_context(closing(open_source(store))) for store in stores]
        data = LiveWindowData(
            *stores,
            readers=readers,
            encoder=encoder,
            heldout_share=heldout_share,
            weights=weights,
        )
        for store in stores:
            check_probe(encoder, store.read_probe(), where=str(store.path))
        yield data
