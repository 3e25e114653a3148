"""The frozen SigLIP2 vision encoder, from the Hugging Face hub or a local checkpoint.

Features:

* `pooled` [768], the original design's: `pooler_output` of the attention pooling head, not
  L2-normalized.
* `grid` [8, 8, 64]: the patch tokens after the final layer norm, averaged to 8x8 positions, their
  channels reduced by a PCA basis that is fitted on the dataset. `grid@N` takes the hidden state
  after layer N instead, before that norm.

No other file but `stand_in.py` imports transformers. The normalization is not folded into the patch
convolution. That saves well below a hundredth of a pass, and in bfloat16 the folded features are
several times farther from float32: a patch's weights add up to a bias that is large next to the
result, and its rounding stays in every token.

Source: google/siglip2-base-patch16-256 (model card, config.json, preprocessor_config.json).
A fixed-resolution SigLIP2 checkpoint is of the architecture `siglip`: `SiglipVisionModel`.
"""

import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

import numpy as np
import torch
from huggingface_hub import snapshot_download
from jaxtyping import Float32, UInt8
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor import config as compiler
from transformers import PreTrainedModel, SiglipVisionConfig, SiglipVisionModel
from transformers import __version__ as transformers_version

from policy.encoders.base import (
    EncoderSettings,
    ImageEncoder,
    best_compute_dtype,
    feature_spec,
    hash_weights,
)
from policy.encoders.registry import DEFAULT_ENCODER, ENCODERS
from policy.errors import EncoderLoadError, first_line
from policy.spec import FRAME_SIZE, EncoderIdentity, FeatureSpec

AttentionKernel = Literal["sdpa", "eager"]
Half = TypeVar("Half", bound=PreTrainedModel)

DEFAULT_REVISION: Final = "3f9f96cb90da5dbc758b01813f2f6f1aee24c1ab"  # the hub's main in 2025-2026
GRID_SIDE: Final = 8  # positions per side; a patch16-256 encoder's 16x16 are averaged 2x2
GRID_CHANNELS: Final = 64  # components of the PCA; 8 kB per image in float16

PREPROCESSING_VERSION: Final = 1  # raise it when `_normalize` or `resize_images` changes a bit
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
        self,
        network: SiglipVisionModel,
        settings: EncoderSettings,
        *,
        name: str,
        revision: str,
        pretrained: bool,
        attention: AttentionKernel = "sdpa",
    ):
        """Freeze `network`, whose weights are float32, and cast it to the compute dtype.

        It may have any size that `siglip` checkpoints have, for 256x256 images. Name, revision and
        `pretrained` as in `EncoderIdentity`; the attention `eager` is slower, for comparisons.

        Raises:
            EncoderLoadError: it makes no such feature, or a basis is of other patches.
        """
        layers = range(1, network.config.num_hidden_layers)
        super().__init__(
            settings,
            library=f"transformers {transformers_version}, {attention}",
            known=("pooled", "grid", *(f"grid@{layer}" for layer in layers)),
        )
        self._width: int = network.config.hidden_size
        patches = FRAME_SIZE[0] // cast(int, network.config.patch_size)
        self._side = GRID_SIDE if patches % GRID_SIDE == 0 else patches
        for feature, basis in self.bases.items():
            if basis.shape[0] != self._width + 1:
                raise EncoderLoadError(
                    f"{name}: the basis of feature `{feature}` is of patches with "
                    f"{basis.shape[0] - 1} channels, this encoder's have {self._width}; use the "
                    f"encoder that the store was made with"
                )
        self._sent: dict[str, Tensor] = {}  # bases on the device; sending one would wait for a GPU
        compute_dtype = settings.compute_dtype or best_compute_dtype(settings.device)
        weights = hash_weights(
            dict(_module(network).named_parameters()), _contract(network.config, compute_dtype)
        )
        self._described = {
            "name": name,
            "revision": revision,
            "pretrained": pretrained,
            "compute_dtype": compute_dtype,
            "weights": weights,
        }
        self._compute_dtype: torch.dtype = getattr(torch, compute_dtype)
        network.set_attn_implementation(attention)
        # Inference mode keeps gradients away. `requires_grad` stays on: torch 2.13's matmul folds
        # the pooling head's transposed input into one product only then, else it copies the
        # weights once per token (6 times slower for the whole stand-in).
        module = _module(network).to(device=self.device, dtype=self._compute_dtype)
        module.eval()
        # One graph per shape of pass: it must not depend on which shapes were encoded before.
        self._network = (
            torch.compile(module, fullgraph=True, dynamic=False) if self._compiled else module
        )

    @property
    def identity(self) -> EncoderIdentity:
        """Which encoder this is; fitting a basis changes a fingerprint."""
        return EncoderIdentity(
            features=tuple(map(self._describe, self.feature_names)), **self._described
        )

    def _describe(self, feature: str) -> FeatureSpec:
        if feature == "pooled":
            return feature_spec(feature, (self._width,), source="pooler_output")
        basis = self.bases.get(feature)
        channels = GRID_CHANNELS if basis is None else basis.shape[1]
        return feature_spec(
            feature,
            (self._side, self._side, channels),
            source=f"patches of {_layer(feature) or 'the last layer'}, {self._side} per side, PCA",
            basis=basis,
        )

    @property
    def unfitted(self) -> tuple[str, ...]:
        """The grids without a basis."""
        return tuple(
            name for name in self.feature_names if name != "pooled" and name not in self.bases
        )

    @torch.inference_mode()
    def fit(self, images: UInt8[np.ndarray, "n 256 256 3"]) -> None:
        """Fit the PCA of each grid without one; see `ImageEncoder.fit`.

        A basis is float32 [width + 1, channels]: a column is a component with unit length, and the
        last row what is added, so that the components of the sample's patches have zero mean.
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
        pixels = _normalize(images).to(self._compute_dtype)
        keeps_layers = any(map(_layer, self.feature_names))
        # Frozen weights are packed for their kernels once, and bias and activation are fused in.
        frozen = compiler.patch(freezing=True) if self._compiled else nullcontext()
        try:
            with frozen:
                return self._network(pixel_values=pixels, output_hidden_states=keeps_layers)
        except BackendCompilerFailed as error:
            raise EncoderLoadError(
                f"{self._described['name']}: the encoder cannot be compiled on this machine "
                f"({first_line(error.inner_exception)}); install a C++ compiler, or encode without "
                f"compiling"
            ) from error

    def _patches(self, feature: str, outputs: Any) -> Float32[Tensor, "n side side width"]:
        """Return patch tokens in rows and columns, averaged to the grid's positions."""
        layer = _layer(feature)
        tokens = outputs.hidden_states[layer] if layer else outputs.last_hidden_state
        patches = round(tokens.shape[1] ** 0.5)
        image = tokens.float().unflatten(1, (patches, patches)).permute(0, 3, 1, 2)
        pooled = nn.functional.avg_pool2d(image, patches // self._side)
        return pooled.permute(0, 2, 3, 1)


def _module(network: SiglipVisionModel) -> nn.Module:
    return cast(nn.Module, network)


def _layer(feature: str) -> int | None:
    """Return the layer that a feature's name gives; None where it is the last one's output."""
    match = re.fullmatch(r"grid@([0-9]+)", feature)
    return int(match[1]) if match else None


def _normalize(images: Tensor) -> Tensor:
    """Map uint8 [n, h, w, 3] in [0, 255] to float32 [n, 3, h, w] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0


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
    """Load a checkpoint from the hub or from a folder; see `load_encoder`.

    A folder has `config.json`, `preprocessor_config.json` and safetensors. Any repository but the
    default one needs its revision named.
    """
    name = settings.name
    if Path(name).exists() and settings.revision is not None:
        raise EncoderLoadError(
            f"{name}: expected no revision for a local folder, found {settings.revision!r}"
        )
    if Path(name).is_file():
        raise EncoderLoadError(f"{name}: expected the folder of a checkpoint, found a file")
    if Path(name).is_dir():
        network, label, revision = _load_network(Path(name)), Path(name).resolve().name, "local"
    else:
        revision = pinned_revision(name, settings.revision)
        folder = fetch_checkpoint(name, revision, "preprocessor_config.json")
        network, label = _load_network(folder), name
    return Siglip2Encoder(network, settings, name=label, revision=revision, pretrained=True)


def pinned_revision(name: str, revision: str | None) -> str:
    """Return the commit of a repository on the hub (EncoderLoadError: none is named)."""
    if revision is None and name == DEFAULT_ENCODER:
        return DEFAULT_REVISION
    if revision is None or len(revision) != 40 or set(revision) - set("0123456789abcdef"):
        raise EncoderLoadError(
            f"{name}: expected a built-in encoder ({', '.join(ENCODERS)}) or a folder, found "
            "neither; a Hugging Face repository needs --revision with a 40-digit commit hash, not "
            f"{revision!r}"
        )
    return revision


def fetch_checkpoint(name: str, revision: str, further: str) -> Path:
    """Fetch weights, `config.json` and a `further` file from the hub, or raise EncoderLoadError."""
    patterns = ["config.json", "*.safetensors*", further]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    # The hub's client leaks the errors of whichever transport it uses; each means "not fetched".
    except Exception as error:
        raise EncoderLoadError(
            f"{name}@{revision[:8]}: cannot be fetched from the Hugging Face hub "
            f"({first_line(error)}). Pass the path of a local copy, or an encoder that does not "
            f"need the hub: {', '.join(ENCODERS)}"
        ) from error


def _load_network(folder: Path) -> SiglipVisionModel:
    _check_preprocessing(folder / "preprocessor_config.json")
    network = load_half(SiglipVisionModel, folder, "vision", other=TEXT_PART)
    expected = {"image_size": FRAME_SIZE[0], "vision_use_head": True}
    found = {field: getattr(network.config, field) for field in expected}
    if found != expected:
        raise EncoderLoadError(f"{folder}/config.json: expected {expected}, found {found}")
    return network


def load_half(model: type[Half], folder: Path, half: str, *, other: tuple[str, ...]) -> Half:
    """Load one half of a checkpoint, every tensor of it.

    `half` is what messages call it; the names of the other half's tensors begin with `other`.

    Raises:
        EncoderLoadError: a file is damaged, or a tensor is missing, unknown or of another shape.
    """
    try:
        loaded = model.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    # Damaged files raise whatever the layer that trips over them raises.
    except Exception as error:
        raise EncoderLoadError(
            f"{folder}: cannot load a SigLIP2 {half} network ({error})"
        ) from error
    network, report = cast(tuple[Half, dict[str, Any]], loaded)
    if report["missing_keys"] or report["mismatched_keys"]:
        wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise EncoderLoadError(
            f"{folder}: {len(wrong)} tensors of the {half} network are missing or have a different "
            f"shape, the first is {wrong[0]}; use a complete `siglip` checkpoint"
        )
    strange = sorted(str(k) for k in report["unexpected_keys"] if not k.startswith(other))
    if strange:
        raise EncoderLoadError(
            f"{folder}: {len(strange)} tensors do not belong to the {half} network of config.json, "
            f"the first is {strange[0]}; use the config.json of these weights"
        )
    return network


def _check_preprocessing(path: Path) -> None:
    """Require every field: a missing one would silently mean bicubic and 224 pixels."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EncoderLoadError(f"{path}: expected a JSON file, cannot read it ({error})") from error
    for field, expected in PREPROCESSING.items():
        value = found.get(field, "nothing") if isinstance(found, dict) else "nothing"
        if value != expected:
            raise EncoderLoadError(f"{path}: {field}: expected {expected}, found {value}")
    further = {
        field
        for field, value in found.items()
        if field.startswith("do_") and value and field not in {*PREPROCESSING, "do_convert_rgb"}
    }
    if further:
        raise EncoderLoadError(
            f"{path}: requires {', '.join(sorted(further))}, a preprocessing step that is not "
            f"supported"
        )


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
