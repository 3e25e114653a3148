"""The frozen SigLIP2 vision encoder, from the Hugging Face hub or a local checkpoint.

Features:

* `pooled` [768], the original design's: `pooler_output` of the attention pooling head, not
  L2-normalized.
* `grid` [8, 8, 64]: the patch tokens after the final layer norm, averaged to 8x8 positions, their
  channels reduced by a PCA basis that is fitted on the dataset. `grid@N` takes the hidden state
  after layer N instead, before that norm.

The normalization is not folded into the patch convolution: in bfloat16 that would move features
several times farther from float32, by the rounding of a large bias, and hardly save any time.

Source: google/siglip2-base-patch16-256 (model card, config.json, preprocessor_config.json).
A fixed-resolution SigLIP2 checkpoint is of the architecture `siglip`: `SiglipVisionModel`.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from huggingface_hub import snapshot_download
from jaxtyping import Float32, UInt8
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers import __version__ as transformers_version

from policy.encoders.base import (
    EncoderSettings,
    ImageEncoder,
    best_compute_dtype,
    feature_spec,
    hash_weights,
)
from policy.encoders.registry import DEFAULT_ENCODER, ENCODERS
from policy.encoders.text import TextSettings
from policy.errors import EncoderLoadError, first_line
from policy.spec import FRAME_SIZE, EncoderIdentity, FeatureSpec

DEFAULT_REVISION: Final = "3f9f96cb90da5dbc758b01813f2f6f1aee24c1ab"  # the hub's main in 2025-2026
GRID_SIDE: Final = 8  # positions per side; a patch16-256 encoder's 16x16 are averaged 2x2
GRID_CHANNELS: Final = 64  # components of the PCA; 8 kB per image in float16

PREPROCESSING_VERSION: Final = 1  # raise it when `_outputs` or `resize_images` changes a bit
PREPROCESSING: Final[dict[str, object]] = {  # preprocessor_config.json of the default checkpoint
    "do_resize": True,
    "size": {"height": FRAME_SIZE[0], "width": FRAME_SIZE[1]},
    "resample": 2,  # bilinear; the library's own default would be 3, bicubic
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
ARCHITECTURE: Final = (  # fields of config.json that decide the features
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
TEXT_PART: Final = ("text_model.", "logit_scale", "logit_bias")  # of a full checkpoint


class Siglip2Encoder(ImageEncoder):
    """SigLIP2's vision network without gradients."""

    default_features = ("pooled",)

    def __init__(
        self, network: Any, settings: EncoderSettings, *, name: str, revision: str, pretrained: bool
    ):
        """Freeze `network`, a `SiglipVisionModel` of float32, and cast it to the compute dtype.

        It may have any size that `siglip` checkpoints have, for 256x256 images. Name, revision and
        `pretrained` as in `EncoderIdentity`.
        """
        layers = (f"grid@{layer}" for layer in range(1, network.config.num_hidden_layers))
        library = f"transformers {transformers_version}, sdpa"
        super().__init__(settings, library=library, known=("pooled", "grid", *layers))
        self._width: int = network.config.hidden_size
        patches: int = FRAME_SIZE[0] // network.config.patch_size
        self._side = GRID_SIDE if patches % GRID_SIDE == 0 else patches
        self._sent: dict[str, Tensor] = {}  # bases on the device; sending one would wait for a GPU
        compute_dtype = settings.compute_dtype or best_compute_dtype(settings.device)
        contract = _contract(network.config, compute_dtype)
        self._described = {
            "name": name,
            "revision": revision,
            "pretrained": pretrained,
            "compute_dtype": compute_dtype,
            "weights": hash_weights(dict(network.named_parameters()), contract),
        }
        self._compute_dtype: torch.dtype = getattr(torch, compute_dtype)
        network.set_attn_implementation("sdpa")
        # Inference mode keeps gradients away. `requires_grad` stays on: torch 2.13's matmul folds
        # the pooling head's transposed input into one product only then, else it copies the
        # weights once per token (6 times slower for the whole stand-in).
        network.to(device=self.device, dtype=self._compute_dtype).eval()
        # Frozen weights are packed for their kernels once, and bias and activation are fused in.
        self._network = self._fused(network, freezing=True)

    @property
    def identity(self) -> EncoderIdentity:
        """Which encoder this is; fitting a basis changes a fingerprint."""
        features = tuple(map(self._describe, self.feature_names))
        return EncoderIdentity(features=features, **self._described)

    def _describe(self, feature: str) -> FeatureSpec:
        if feature == "pooled":
            return feature_spec(feature, (self._width,), source="pooler_output")
        basis = self.bases.get(feature)
        shape = (self._side, self._side, GRID_CHANNELS if basis is None else basis.shape[1])
        source = f"patches of {_layer(feature) or 'the last layer'}, {self._side} per side, PCA"
        return feature_spec(feature, shape, source=source, basis=basis)

    @property
    def unfitted(self) -> tuple[str, ...]:
        """The grids without a basis."""
        return tuple(name for name in self.feature_names if name not in {"pooled", *self.bases})

    @torch.inference_mode()
    def fit(self, images: UInt8[np.ndarray, "n 256 256 3"]) -> None:
        """Fit the PCA of each grid without one; see `ImageEncoder.fit`.

        A basis is float32 [width + 1, channels]: a column is a component of unit length; the last
        row is added, so that the components of the sample's patches have zero mean.
        """
        names = self.unfitted
        sums = {name: np.zeros(self._width) for name in names}
        products = {name: np.zeros((self._width, self._width)) for name in names}
        count = 0
        for start in range(0, len(images), self.images_per_pass):
            sample = torch.from_numpy(images[start : start + self.images_per_pass]).to(self.device)
            outputs = self._outputs(sample)
            for name in names:
                patches = self._patches(name, outputs).flatten(0, 2).double().cpu().numpy()
                sums[name] += patches.sum(axis=0)
                products[name] += patches.T @ patches
            count += len(sample) * self._side**2
        for name in names:
            self.bases[name] = _principal_components(sums[name], products[name], count)

    def _forward(self, images: UInt8[Tensor, "n 256 256 3"]) -> dict[str, Tensor]:
        outputs = self._outputs(images)
        features = {}
        for name in self.feature_names:
            if name == "pooled":
                features[name] = outputs.pooler_output
                continue
            if name not in self._sent:
                self._sent[name] = torch.from_numpy(self.bases[name]).to(self.device)
            basis = self._sent[name]
            features[name] = self._patches(name, outputs) @ basis[:-1] + basis[-1]
        return features

    def _outputs(self, images: Tensor) -> Any:
        scaled = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0  # [n, 3, h, w] in [-1, 1]
        pixels = scaled.to(self._compute_dtype)
        keeps_layers = any(map(_layer, self.feature_names))
        return self._network(pixel_values=pixels, output_hidden_states=keeps_layers)

    def _patches(self, feature: str, outputs: Any) -> Float32[Tensor, "n side side width"]:
        """Return patch tokens in rows and columns, averaged to the grid's positions."""
        layer = _layer(feature)
        tokens = outputs.hidden_states[layer] if layer else outputs.last_hidden_state
        patches = round(tokens.shape[1] ** 0.5)
        image = tokens.float().unflatten(1, (patches, patches)).permute(0, 3, 1, 2)
        pooled = nn.functional.avg_pool2d(image, patches // self._side)
        return pooled.permute(0, 2, 3, 1)


def _layer(feature: str) -> int:
    """Return the layer that a feature's name gives; 0 where it is the last one's output."""
    return int(feature.partition("@")[2] or 0)


def _principal_components(
    total: np.ndarray, products: np.ndarray, count: int
) -> Float32[np.ndarray, "i o"]:
    """Return the basis of `count` patches from their sum and sum of outer products, in float64."""
    mean = total / count
    _, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    components = vectors[:, ::-1][:, :GRID_CHANNELS]
    # An eigenvector has no sign of its own: its largest entry is made positive.
    largest = np.abs(components).argmax(axis=0)
    components = components * np.sign(components[largest, np.arange(components.shape[1])])
    return np.vstack([components, -mean @ components]).astype(np.float32)


def load(settings: EncoderSettings) -> Siglip2Encoder:
    """Load a checkpoint from the hub or from a folder; see `load_encoder`."""
    further = "preprocessor_config.json"
    folder, name, revision = open_checkpoint(settings, further, ENCODERS)
    _check_preprocessing(folder / further)
    network = load_half(SiglipVisionModel, folder, "vision", other=TEXT_PART)
    expected = {"image_size": FRAME_SIZE[0], "vision_use_head": True}
    found = {field: getattr(network.config, field) for field in expected}
    if found != expected:
        raise EncoderLoadError(f"{folder}/config.json: expected {expected}, found {found}")
    return Siglip2Encoder(network, settings, name=name, revision=revision, pretrained=True)


def open_checkpoint(
    settings: EncoderSettings | TextSettings, further: str, built_in: Iterable[str]
) -> tuple[Path, str, str]:
    """Return a checkpoint's folder, its name and its revision; a hub's repository is fetched.

    It has safetensors, `config.json` and the `further` file. Any repository but the default one
    needs its revision (EncoderLoadError: it has none, or the hub is unreachable; use a `built_in`).
    """
    name, revision, path = settings.name, settings.revision, Path(settings.name)
    if path.exists():
        if revision is not None or path.is_file():
            found = "a file" if path.is_file() else f"revision {revision!r}"
            raise EncoderLoadError(f"{name}: expected no revision and a folder, found {found}")
        return path, path.resolve().name, "local"
    name, _, named = name.partition("@")
    revision = revision or named or (DEFAULT_REVISION if name == DEFAULT_ENCODER else None)
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise EncoderLoadError(
            f"{name}: expected a built-in encoder ({', '.join(built_in)}) or a folder, found "
            "neither; a Hugging Face repository needs its commit, as owner/name@HASH of 40 digits, "
            f"not {revision!r}"
        )
    patterns = ["config.json", "*.safetensors*", further]
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=patterns)
    # The hub's client leaks the errors of whichever transport it uses; each means "not fetched".
    except Exception as error:
        raise EncoderLoadError(
            f"{name}@{revision[:8]}: cannot be fetched from the Hugging Face hub "
            f"({first_line(error)}). Pass the path of a local copy, or an encoder that does not "
            f"need the hub: {', '.join(built_in)}"
        ) from error
    return Path(folder), name, revision


def load_half(model: Any, folder: Path, half: str, *, other: tuple[str, ...]) -> Any:
    """Load one half of a checkpoint by transformers' class `model`; messages call it `half`.

    The names of the other half's tensors begin with `other` (EncoderLoadError: a file is damaged,
    or a tensor is missing, unknown or of another shape).
    """
    try:
        network, report = model.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    # Damaged files raise whatever the layer that trips over them raises.
    except Exception as error:
        message = f"{folder}: cannot load a SigLIP2 {half} network ({error})"
        raise EncoderLoadError(message) from error
    unknown = [name for name in report["unexpected_keys"] if not name.startswith(other)]
    wrong = sorted([*report["missing_keys"], *unknown])
    if wrong:
        raise EncoderLoadError(
            f"{folder}: {len(wrong)} tensors of the {half} network are missing or not of "
            f"config.json, the first is {wrong[0]}; use a complete `siglip` checkpoint"
        )
    return network


def _check_preprocessing(path: Path) -> None:
    """Require every field: a missing one would silently mean bicubic and 224 pixels."""
    try:
        found = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise EncoderLoadError(f"{path}: expected a JSON file, cannot read it ({error})") from error
    steps = {field for field, value in found.items() if field.startswith("do_") and value}
    for field in [*PREPROCESSING, *sorted(steps - {*PREPROCESSING, "do_convert_rgb"})]:
        expected, value = PREPROCESSING.get(field, False), found.get(field, "nothing")
        if value != expected:
            raise EncoderLoadError(f"{path}: {field}: expected {expected}, found {value}")


def _contract(config: SiglipVisionConfig, compute_dtype: str) -> dict[str, object]:
    """Return everything but the weights that decides the features' bits, but the environment."""
    return {
        "vision_config": {name: getattr(config, name) for name in ARCHITECTURE},
        "preprocessing": PREPROCESSING,
        "preprocessing_version": PREPROCESSING_VERSION,
        "input": "uint8 HWC RGB",
        "compute_dtype": compute_dtype,
        "store_dtype": "float16",
    }
