"""The stand-in: two layers of SigLIP2's architecture with random weights, for tests and trials.

It needs no download, has the sizes and the features of the real encoder, and sees next to nothing.
"""

from typing import Final

import numpy as np
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.initialization import no_init_weights

from policy.encoders.base import EncoderSettings
from policy.encoders.siglip2 import Siglip2Encoder
from policy.spec import FRAME_SIZE

NAME: Final = "stand-in"
SEED: Final = 20_250_217  # any fixed number; the release day of SigLIP2
LAYERS: Final = 2
WIDTH: Final = 768  # as SigLIP2 base


def load(settings: EncoderSettings) -> Siglip2Encoder:
    """Build the stand-in; see `load_encoder`."""
    return Siglip2Encoder(
        build_stand_in(), settings, name=NAME, revision=f"seed-{SEED}", pretrained=False
    )


def build_stand_in() -> SiglipVisionModel:
    """Build a two-layer network whose weights depend on the seed alone, not on library versions.

    The scales follow transformers' own initialization of `siglip` networks. numpy's RandomState is
    frozen by NEP 19, so that every machine draws the same numbers.
    """
    config = SiglipVisionConfig(
        hidden_size=WIDTH, image_size=FRAME_SIZE[0], patch_size=16, num_hidden_layers=LAYERS
    )
    with no_init_weights():  # all are drawn below
        network = SiglipVisionModel(config)
    numbers = np.random.RandomState(SEED)
    with torch.no_grad():
        for name, parameter in sorted(network.named_parameters()):
            shape = tuple(parameter.shape)
            if parameter.ndim == 1:  # biases, and the gains of the layer norms
                values = np.full(shape, float(not name.endswith("bias")))
            elif "position_embedding" in name:
                values = numbers.normal(0.0, WIDTH**-0.5, shape)
            elif "patch_embedding" in name:
                values = numbers.normal(0.0, np.prod(shape[1:]) ** -0.5, shape)
            else:  # Xavier-uniform matrices and the pooling probe
                bound = (6.0 / (shape[-1] + shape[-2])) ** 0.5
                values = numbers.uniform(-bound, bound, shape)
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    return network
