"""A checkpoint of SigLIP2's architecture that encodes a frame in a millisecond.

For tests of everything around the encoder: 16 patches and one thin layer, loaded from files as the
real tower is. What an encoder must do is tested with the stand-in, which has the real sizes.
"""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from policy.encoders.siglip2 import PREPROCESSING
from policy.spec import FEATURE_DIM, FRAME_SIZE


@cache
def tiny_tower() -> str:
    """Return the folder of the checkpoint, the same random weights in every process."""
    folder = Path(tempfile.mkdtemp(prefix="tower"))
    atexit.register(shutil.rmtree, folder)
    config = SiglipVisionConfig(
        hidden_size=FEATURE_DIM,
        intermediate_size=64,
        image_size=FRAME_SIZE[0],
        patch_size=64,
        num_hidden_layers=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = SiglipVisionModel(config)
    tower.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return str(folder)
