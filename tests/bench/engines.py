"""How far the features of a store's encoder move from one engine to another, on real frames.

The reference is this machine's encoder in the store's dtype, one control step per pass, sdpa
attention, not compiled, rounded to float16, as embedding and rollout use it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float, Float16, Float64, UInt8

from pipeline.features.identity.encoder import load_same_encoder, revision_to_load
from pipeline.features.identity.probe import Probe
from policy.encoders.environment import AttentionKernel
from policy.encoders.siglip2 import FrozenSiglip2, load_backbone
from policy.errors import MissingExtraError
from policy.spec import FRAME_SHAPE, ComputeDtype, EncoderIdentity
from tests.bench.video_loss import through_video

STEPS_TOGETHER: Final = 8  # control steps of the larger batch
ROUNDING_SEED: Final = 0


@dataclass(frozen=True)
class Variant:
    """Features of the same frames, computed in another way."""

    name: str
    """What differs, in a few words."""
    features: Float[np.ndarray, "q v 768"] | None
    """None where this machine cannot compute them."""
    reason: str = ""
    """Why not."""


class EngineComparison:
    """The encoder of some features, and all the ways to compute them that this machine has."""

    def __init__(
        self, made_by: EncoderIdentity, probe: Probe, *, backbone: str | None, where: str
    ) -> None:
        """Load the encoder as embedding and rollout use it.

        Args:
            made_by: the encoder of the features.
            probe: its real frames are encoded.
            backbone: where the encoder lies now; None takes the name in `made_by`.
            where: what holds the features, for messages.

        Raises:
            EncoderLoadError, EncoderMismatchError: the encoder cannot be loaded.
        """
        self.encoder = load_same_encoder(made_by, backbone, where=where)
        self.frames: UInt8[np.ndarray, "q v 256 256 3"] = probe.real_frames
        self.reference = encode(self.encoder, self.frames)
        self._held = probe.features[-len(self.frames) :]
        self._name = backbone or made_by.name
        self._revision = revision_to_load(made_by, backbone)

    def variants(self, *, compiled: bool) -> Iterator[Variant]:
        """Compute the features in one way after the other.

        Args:
            compiled: also with torch.compile, which takes up to minutes.
        """
        dtype = self.encoder.identity.compute_dtype
        other: ComputeDtype = "float32" if dtype == "bfloat16" else "bfloat16"
        yield Variant("the engine that made the store", self._held)
        yield Variant(f"{STEPS_TOGETHER} steps a pass", in_one_pass(self.encoder, self.frames))
        yield Variant("eager attention", encode(self._load(attention="eager"), self.frames))
        yield Variant(f"{other} products", encode(self._load(compute_dtype=other), self.frames))
        if compiled:
            yield Variant("torch.compile", encode(self._load(compiled=True), self.frames))
        yield Variant("before rounding to float16", before_rounding(self.reference))
        yield self._after_video("frame through H.264, crf 23", "h264")
        yield self._after_video("frame through AV1, crf 30", "av1")

    def _load(
        self,
        *,
        compute_dtype: ComputeDtype | None = None,
        attention: AttentionKernel = "sdpa",
        compiled: bool = False,
    ) -> FrozenSiglip2:
        return load_backbone(
            self._name,
            revision=self._revision,
            compute_dtype=compute_dtype or self.encoder.identity.compute_dtype,
            attention=attention,
            compiled=compiled,
        )

    def _after_video(self, name: str, codec: Literal["h264", "av1"]) -> Variant:
        try:
            decoded = through_video(self.frames.reshape(-1, *FRAME_SHAPE), codec)
        except MissingExtraError as error:
            return Variant(name, None, str(error))
        return Variant(name, encode(self.encoder, decoded.reshape(self.frames.shape)))


def encode(
    encoder: FrozenSiglip2, frames: UInt8[np.ndarray, "t v 256 256 3"]
) -> Float16[np.ndarray, "t v 768"]:
    """Encode frames that lie in numpy's memory."""
    return encoder.encode_views(torch.from_numpy(np.ascontiguousarray(frames))).numpy()


def in_one_pass(
    encoder: FrozenSiglip2, frames: UInt8[np.ndarray, "q v 256 256 3"]
) -> Float16[np.ndarray, "q v 768"]:
    """Encode frames in the company of others, as many as `STEPS_TOGETHER` steps have.

    On a CPU the encoder takes one step a pass; the images of several are several views to it.
    """
    num_steps, num_views = frames.shape[:2]
    assert num_steps <= STEPS_TOGETHER
    rows = np.arange(STEPS_TOGETHER) % num_steps
    together = frames[rows].reshape(1, STEPS_TOGETHER * num_views, *FRAME_SHAPE)
    features = encode(encoder, together)
    return features.reshape(STEPS_TOGETHER, num_views, -1)[:num_steps]


def before_rounding(features: Float16[np.ndarray, "q v 768"]) -> Float64[np.ndarray, "q v 768"]:
    """Return what features may have been before they were rounded: anywhere half a unit away."""
    half_a_unit = np.spacing(np.abs(features)).astype(np.float64) / 2
    share = np.random.default_rng(ROUNDING_SEED).uniform(-1, 1, features.shape)
    return np.asarray(features.astype(np.float64) + share * half_a_unit)
