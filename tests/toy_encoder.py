"""A further encoder, as a newcomer writes one: two features of odd shapes, and one registry line.

Tests add the line for their time: `monkeypatch.setitem(ENCODERS, toy_encoder.NAME, MODULE)`.
"""

from typing import Final

import torch
from torch import Tensor, nn

from policy.encoders.base import EncoderSettings, ImageEncoder, feature_spec, hash_weights
from policy.spec import EncoderIdentity

NAME: Final = "toy"
MODULE: Final = __name__
FEATURES: Final = {"edges": (5,), "colors": (2, 3, 7)}
STEPS: Final = (1, 2, 4, 8, 16)  # of these pixels between the columns that `edges` compares


class ToyEncoder(ImageEncoder):
    """Sums of differences, and mean colors of six parts of an image's every other pixel."""

    default_features = tuple(FEATURES)

    def __init__(self, settings: EncoderSettings):
        super().__init__(settings, library="toy 1", known=tuple(FEATURES))
        self._identity = EncoderIdentity(
            name=settings.name,
            revision="1",
            pretrained=False,
            compute_dtype="float32",
            weights=hash_weights({}, {"steps": STEPS}),
            features=tuple(
                feature_spec(name, FEATURES[name], source=name) for name in self.feature_names
            ),
        )

    @property
    def identity(self) -> EncoderIdentity:
        return self._identity

    def _forward(self, images: Tensor) -> dict[str, Tensor]:
        pixels = images[:, ::2, ::2].permute(0, 3, 1, 2).float() / 255
        edges = [(pixels[..., k:] - pixels[..., :-k]).abs().mean(dim=(1, 2, 3)) for k in STEPS]
        channels = torch.cat([pixels, pixels**2, pixels.mean(dim=1, keepdim=True)], dim=1)
        colors = nn.functional.adaptive_avg_pool2d(channels, (2, 3)).permute(0, 2, 3, 1)
        features = {"edges": torch.stack(edges, dim=-1), "colors": colors}
        return {name: features[name] for name in self.feature_names}


def load(settings: EncoderSettings) -> ImageEncoder:
    """Load it with the features that were asked for, by default both."""
    return ToyEncoder(settings)
