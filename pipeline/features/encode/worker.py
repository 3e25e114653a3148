"""One of several processes that encode the units of one store, wherever it runs.

Knows how to open everything anew from a small plan, and encodes the units that it is handed. Who
hands them out, and what happens when a worker is lost, is in executors.py. Workers share nothing
but the store: a unit is in one worker's hands at a time, and any of them writes the same bytes.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final

import torch

from pipeline.errors import EncoderMismatchError
from pipeline.features.encode.known_frames import FrameIndex
from pipeline.features.encode.unit_encoder import FrameSource, UnitEncoder, UnitOutcome
from pipeline.features.identity.dataset import open_source
from pipeline.features.identity.probe import check_probe
from pipeline.features.store.feature_store import FeatureStore
from pipeline.storage.location import Location
from policy.device import open_device
from policy.encoders.siglip2 import FrozenSiglip2, load_backbone

UNITS_IN_FLIGHT: Final = 2  # of a worker: one encoded, the next read or the last written meanwhile


@dataclass(frozen=True)
class WorkerPlan:
    """What a worker must know; picklable."""

    manifest: Path
    """Of the dataset, whose files the worker reads itself."""
    store: Location
    """Created already, with a probe that the worker's encoder must pass."""
    backbone: str
    """As `vla-embed` was asked for it; so are the next three."""
    revision: str | None
    device: str
    compiled: bool
    threads: int
    """Threads of torch in the worker."""
    index: FrameIndex
    """Frames whose features may be copied."""


class UnitWorker:
    """Encodes units, in the order in which they are handed over, in a thread of its own."""

    def __init__(self, plan: WorkerPlan):
        """Open encoder, store and dataset.

        Raises:
            VlaError: one of them cannot be opened here, they do not fit each other, or this
                machine computes something else than the store's probe says.
        """
        torch.set_num_threads(plan.threads)
        store = FeatureStore.open(plan.store, allow_incomplete=True, writable=True)
        backbone = load_backbone(
            plan.backbone,
            revision=plan.revision,
            compute_dtype=store.attributes.encoder.compute_dtype,
            device=open_device(plan.device),
            compiled=plan.compiled,
        )
        _check_encoder(store, backbone)
        reader = open_source(store, plan.manifest)
        ends, num_variants = store.read_episode_ends(), store.attributes.num_variants
        self._encoder = UnitEncoder(
            store, FrameSource(reader, ends, num_variants), backbone, plan.index
        )
        # OpenMP keeps the number of threads by calling thread.
        self._thread = ThreadPoolExecutor(
            max_workers=1, initializer=torch.set_num_threads, initargs=(plan.threads,)
        )
        self._handed_over: deque[int] = deque()
        self._order = Lock()

    def encode_unit(self, unit: int) -> UnitOutcome:
        """Encode a unit and wait until it is committed; several threads may call at a time.

        Raises:
            VlaError, OSError: see `UnitEncoder.encode_unit`.
        """
        with self._order:
            self._handed_over.append(unit)
            encoding = self._thread.submit(self._encode_next)
        return encoding.result().result()

    def _encode_next(self) -> Future[UnitOutcome]:
        unit = self._handed_over.popleft()
        return self._encoder.encode_unit(unit, upcoming=self._upcoming)

    def _upcoming(self) -> int | None:
        return self._handed_over[0] if self._handed_over else None


def _check_encoder(store: FeatureStore, backbone: FrozenSiglip2) -> None:
    held, ours = store.attributes.encoder.fingerprint, backbone.identity.fingerprint
    if ours != held:
        raise EncoderMismatchError(
            f"{store.path}: a worker loads an encoder of fingerprint {ours[:12]}, the store's is "
            f"{held[:12]}; give every machine the same weights and library versions"
        )
    check_probe(backbone, store.read_probe(), where=str(store.path))
