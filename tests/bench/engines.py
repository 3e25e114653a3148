"""How far an encoder's features move from one compute environment to another, on real frames.

The reference is this machine's encoder in the store's dtype and passes, not compiled, rounded to
float16, as embedding and rollout use it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Float, Float64, UInt8

from pipeline.features.identity.encoder import refuse_other_encoder
from pipeline.features.store.feature_store import FeatureStore
from policy.encoders.base import EncoderSettings, ImageEncoder
from policy.encoders.registry import ENCODERS, load_encoder
from policy.errors import MissingExtraError
from policy.spec import FRAME_SHAPE, ComputeDtype
from tests.bench.video_loss import through_video

STEPS_TOGETHER: Final = 8  # control steps of the larger passes
ROUNDING_SEED: Final = 0

Features = Mapping[str, Float[np.ndarray, "q v ..."]]
"""By name, of every view of some frames."""


@dataclass(frozen=True)
class Variant:
    """Features of the same frames, computed in another way."""

    name: str
    """What differs, in a few words."""
    features: Features | None
    """None where this machine cannot compute them."""
    reason: str = ""
    """Why not."""


class EngineComparison:
    """The encoder of a store, and all the ways to compute its features that this machine has."""

    def __init__(self, store: FeatureStore, *, name: str | None) -> None:
        """Load the encoder as embedding and rollout use it.

        Args:
            store: the real frames of its probe are encoded.
            name: where the encoder lies now; None takes the name in the store.

        Raises:
            EncoderLoadError, EncoderMismatchError: the encoder cannot be loaded.
        """
        self._store, self._name = store, name
        self._probe = store.read_probe()
        self.encoder = self._load()
        refuse_other_encoder(self.encoder, store.encoder, where=str(store.path))
        self.frames: UInt8[np.ndarray, "q v 256 256 3"] = self._probe.real_frames
        self.reference = self.encoder.encode_views(self.frames)

    def variants(self, *, compiled: bool) -> Iterator[Variant]:
        """Compute the features in one way after the other.

        Args:
            compiled: also with torch.compile, which takes up to minutes.
        """
        dtype = self.encoder.identity.compute_dtype
        other: ComputeDtype = "float32" if dtype == "bfloat16" else "bfloat16"
        held = {name: values[-len(self.frames) :] for name, values in self._probe.features.items()}
        together = STEPS_TOGETHER * self.frames.shape[1]
        yield Variant("the environment that made the store", held)
        yield self._by(f"{STEPS_TOGETHER} steps a pass", self._load(images_per_pass=together))
        yield self._by(f"{other} products", self._load(compute_dtype=other))
        if compiled:
            yield self._by("torch.compile", self._load(compiled=True))
        yield Variant("before rounding to float16", before_rounding(self.reference))
        yield self._after_video("frame through H.264, crf 23", "h264")
        yield self._after_video("frame through AV1, crf 30", "av1")

    def _load(self, **changes: object) -> ImageEncoder:
        made_by, name = self._store.encoder, self._name or self._store.encoder.name
        settings = {
            "name": name,
            "images_per_pass": self._probe.environment.images_per_pass,
            "features": made_by.feature_names,
            "revision": None if self._name or name in ENCODERS else made_by.revision,
            "compute_dtype": made_by.compute_dtype,
            "bases": self._store.read_bases(),
        }
        return load_encoder(EncoderSettings(**settings | changes))

    def _by(self, name: str, encoder: ImageEncoder) -> Variant:
        return Variant(name, encoder.encode_views(self.frames))

    def _after_video(self, name: str, codec: Literal["h264", "av1"]) -> Variant:
        try:
            decoded = through_video(self.frames.reshape(-1, *FRAME_SHAPE), codec)
        except MissingExtraError as error:
            return Variant(name, None, str(error))
        return Variant(name, self.encoder.encode_views(decoded.reshape(self.frames.shape)))


def before_rounding(features: Features) -> dict[str, Float64[np.ndarray, "q v ..."]]:
    """Return what features may have been before they were rounded: anywhere half a unit away."""
    numbers = np.random.default_rng(ROUNDING_SEED)

    def unrounded(values: np.ndarray) -> np.ndarray:
        half_a_unit = np.spacing(np.abs(values)).astype(np.float64) / 2
        return values.astype(np.float64) + numbers.uniform(-1, 1, values.shape) * half_a_unit

    return {name: unrounded(values) for name, values in features.items()}
