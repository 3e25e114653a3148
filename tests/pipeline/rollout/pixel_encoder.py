"""An encoder whose one feature is an image's first value: what a policy saw can be read off it."""

import torch
from torch import Tensor

from policy.encoders.base import EncoderSettings, ImageEncoder
from policy.spec import EncoderIdentity
from tests.pipeline.tiny import POOLED, tiny_identity

BROKEN_PIXEL = 251
"""Images of this value meet a defect in the encoder."""


class PixelEncoder(ImageEncoder):
    """Makes `pooled` out of the upper left pixel's red."""

    def __init__(self):
        settings = EncoderSettings(name="tiny", images_per_pass=3, features=tuple(POOLED))
        super().__init__(settings, library="pixels 1", known=tuple(POOLED))

    @property
    def identity(self) -> EncoderIdentity:
        return tiny_identity()

    def _forward(self, images: Tensor) -> dict[str, Tensor]:
        if (images == BROKEN_PIXEL).all():
            raise RuntimeError("a defect")
        return {"pooled": images[:, 0, 0, :1].to(torch.float32).expand(-1, *POOLED["pooled"])}
