"""A checkpoint of SigLIP2's architecture that encodes a frame in a millisecond, and its loading.

For tests of everything around the encoder: 16 patches and one thin layer, loaded from files as the
real tower is. What an encoder must do is tested with the stand-in, which has the real sizes.
"""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from policy.encoders.base import EncoderSettings, ImageEncoder
from policy.encoders.registry import load_encoder
from policy.encoders.siglip2 import PREPROCESSING
from policy.spec import FRAME_SIZE

WIDTH = 96


@cache
def tiny_tower(seed: int = 0) -> str:
    """Return the folder of the checkpoint; a seed's random weights are the same everywhere."""
    folder = Path(tempfile.mkdtemp(prefix="tower"))
    atexit.register(shutil.rmtree, folder)
    config = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        image_size=FRAME_SIZE[0],
        patch_size=64,
        num_hidden_layers=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tower = SiglipVisionModel(config)
    tower.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return str(folder)


def load(name: str, images_per_pass: int = 3, **settings) -> ImageEncoder:
    """Load an encoder for three views on the CPU."""
    return load_encoder(EncoderSettings(name=name, images_per_pass=images_per_pass, **settings))


def load_fitted(name: str, images_per_pass: int = 3, **settings) -> ImageEncoder:
    """Load an encoder and fit what it needs to random images, the same each time."""
    encoder = load(name, images_per_pass, **settings)
    if encoder.unfitted:
        numbers = np.random.default_rng(9)
        encoder.fit(numbers.integers(0, 256, (6, *FRAME_SIZE, 3), np.uint8))
    return encoder
