"""The frozen SigLIP2 vision tower: frames in, pooled features out, the same bits at both ends.

Embedding and rollout both call `FrozenSiglip2.encode_views`; nothing else in the project touches
the tower, and no other file imports transformers. On a CPU every forward pass holds the views of
exactly one control step, at embedding as at rollout: the same shapes run the same kernels, so a
cached feature and a live one are equal bit for bit. Larger passes are not sure to be: on a CPU with
AMX some bfloat16 rows got other last bits in them, and they were hardly faster. On a GPU many steps
share a pass, and the results agree within a tolerance instead (untested: this project's tests run
on CPUs).

The normalisation is not folded into the patch convolution. That saves well below a hundredth of a
pass, and in bfloat16 the folded features lie several times farther from float32: a patch's weights
add up to a bias that is large beside the result, and its rounding stays in every token.

Source: google/siglip2-base-patch16-256 (model card, config.json, preprocessor_config.json).
A fixed-resolution SigLIP2 checkpoint is of the architecture `siglip`: `SiglipVisionModel`.
"""

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final, Protocol, cast, get_args

import numpy as np
import torch
from huggingface_hub import snapshot_download
from jaxtyping import Float16, UInt8
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor import config as compiler
from transformers import SiglipVisionConfig, SiglipVisionModel

from policy.encoders.environment import (
    AttentionKernel,
    EngineRecord,
    describe_engine,
    multiply_float32_exactly,
)
from policy.errors import EncoderLoadError, FeatureRangeError, FrameFormatError
from policy.spec import FEATURE_DIM, FRAME_SHAPE, FRAME_SIZE, ComputeDtype, EncoderIdentity

DEFAULT_REPOSITORY: Final = "google/siglip2-base-patch16-256"
DEFAULT_REVISION: Final = "3f9f96cb90da5dbc758b01813f2f6f1aee24c1ab"  # the hub's main in 2025-2026
STAND_IN: Final = "stand-in"
STAND_IN_SEED: Final = 20_250_217  # any fixed number; the release day of SigLIP2
STAND_IN_LAYERS: Final = 2

PREPROCESSING_VERSION: Final = 1  # raise it when `_normalise` or `resize_frames` changes a bit
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
OTHER_TOWER: Final = ("text_model.", "logit_scale", "logit_bias")  # of a two-tower checkpoint
GPU_STEPS_PER_PASS: Final = 64  # control steps; fills a GPU, and bounds its memory


class _Tower(Protocol):
    """The one thing we ask of transformers' model."""

    config: SiglipVisionConfig

    def __call__(self, *, pixel_values: Tensor) -> Any: ...


class FrozenSiglip2:
    """SigLIP2's vision tower without gradients. Build it with `load_backbone`.

    It is no `nn.Module`, so that an agent that holds one neither trains nor saves it.
    """

    dataset_image_resize_shape: None = None
    eval_image_resize_shape: tuple[int, int] = FRAME_SIZE

    def __init__(
        self,
        tower: SiglipVisionModel,
        identity: EncoderIdentity,
        device: torch.device,
        *,
        attention: AttentionKernel,
        compiled: bool,
    ):
        """Freeze `tower`, whose weights are float32, and cast it to the compute dtype."""
        self.identity = identity
        self.device = device
        self._attention = attention
        self._compiled = compiled
        self._steps_per_pass = 1 if device.type == "cpu" else GPU_STEPS_PER_PASS
        self._compute_dtype = getattr(torch, identity.compute_dtype)
        self._config = tower.config
        multiply_float32_exactly(device)
        tower.set_attn_implementation(attention)
        # Inference mode keeps gradients away. `requires_grad` stays on: torch 2.13's matmul folds
        # the pooling head's transposed input into one product only then, else it copies the
        # weights once a token (6 times slower for the whole stand-in).
        module = cast(nn.Module, tower).to(device=device, dtype=self._compute_dtype)
        module.eval()
        # One graph a shape of pass: it must not depend on which shapes were encoded before.
        fused = torch.compile(module, fullgraph=True, dynamic=False) if compiled else module
        self._tower = cast(_Tower, fused)

    @property
    def engine(self) -> EngineRecord:
        """How this process computes features, as torch is set now."""
        return describe_engine(
            self.device,
            attention=self._attention,
            compiled=self._compiled,
            steps_per_pass=self._steps_per_pass,
        )

    @torch.inference_mode()
    def encode_views(self, frames: UInt8[Tensor, "t v 256 256 3"]) -> Float16[Tensor, "t v 768"]:
        """Encode every view of every step independently; see `VisionBackbone.encode_views`."""
        if frames.dtype != torch.uint8 or tuple(frames.shape[2:]) != FRAME_SHAPE:
            raise FrameFormatError(
                f"frames are {frames.dtype} {tuple(frames.shape)}, want uint8 "
                f"[steps, views, {', '.join(map(str, FRAME_SHAPE))}] RGB"
            )
        features = [self._encode(steps) for steps in torch.split(frames, self._steps_per_pass)]
        return torch.cat(features)

    def _encode(self, frames: Tensor) -> Tensor:
        steps, views = frames.shape[:2]
        pixels = _normalise(frames.flatten(0, 1).to(self.device)).to(self._compute_dtype)
        pooled = self._pool(pixels)
        rounded: Tensor = pooled.float().cpu().to(torch.float16)
        if not rounded.isfinite().all():
            raise FeatureRangeError(
                f"{self.identity.name}: a feature is not finite or beyond float16's +-65504; the "
                f"tower's weights are damaged or {self.identity.compute_dtype} overflows"
            )
        return rounded.reshape(steps, views, FEATURE_DIM)

    def _pool(self, pixels: Tensor) -> Tensor:
        # Frozen weights are packed for their kernels once, and bias and activation are fused in.
        frozen = compiler.patch(freezing=True) if self._compiled else nullcontext()
        try:
            with frozen:
                return cast(Tensor, self._tower(pixel_values=pixels).pooler_output)
        except BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().splitlines() or [type(error).__name__]
            raise EncoderLoadError(
                f"{self.identity.name}: the tower does not compile here ({reason[0]}); install a "
                f"C++ compiler, or encode without compiling"
            ) from error


def _normalise(frames: Tensor) -> Tensor:
    """Map uint8 [n, h, w, 3] in [0, 255] to float32 [n, 3, h, w] in [-1, 1]."""
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def best_compute_dtype(device: torch.device) -> ComputeDtype:
    """Return bfloat16 where the hardware multiplies it natively, else float32."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if native else "float32"


def load_backbone(
    name: str = DEFAULT_REPOSITORY,
    *,
    revision: str | None = None,
    compute_dtype: ComputeDtype | None = None,
    device: torch.device | None = None,
    attention: AttentionKernel = "sdpa",
    compiled: bool = False,
) -> FrozenSiglip2:
    """Load the encoder that `name` says; never another one instead.

    Args:
        name: a repository id on the Hugging Face hub, a local folder with `config.json`,
            `preprocessor_config.json` and safetensors, or `stand-in`.
        revision: 40-hex commit on the hub; None is the pinned one of the default repository. Any
            other repository must name its revision.
        compute_dtype: dtype of weights and products; None picks `best_compute_dtype`.
        device: where the tower runs; None is the CPU.
        attention: which implementation of attention; `eager` is slower, and good for comparing.
        compiled: fuse the tower with torch.compile when it first runs, which takes up to minutes
            and needs a C++ compiler. Another engine: its features are equal within a tolerance.
            On some CPUs the last bits then depend on a frame's place among the views of its pass.

    Raises:
        EncoderLoadError: the hub is unreachable, a file is missing, weights or preprocessing are
            not SigLIP2's, or the revision is not a commit. `encode_views` raises it where a
            compiled tower does not compile.
    """
    device = device or torch.device("cpu")
    compute_dtype = compute_dtype or best_compute_dtype(device)
    if compute_dtype not in get_args(ComputeDtype):
        raise EncoderLoadError(f"compute dtype {compute_dtype!r}, want float32 or bfloat16")
    if revision is not None and (name == STAND_IN or Path(name).exists()):
        raise EncoderLoadError(
            f"{name}: revision {revision!r} given, want none: it is no repository"
        )
    if Path(name).is_file():
        raise EncoderLoadError(f"{name}: is a file, want the folder of a checkpoint")
    if name == STAND_IN:
        tower, label, commit = _build_stand_in(), STAND_IN, f"seed-{STAND_IN_SEED}"
    elif Path(name).is_dir():
        folder = Path(name)
        tower, label, commit = _load_tower(folder), folder.resolve().name, "local"
    else:
        commit = _pinned_revision(name, revision)
        tower, label = _load_tower(_fetch(name, commit)), name
    identity = EncoderIdentity(
        name=label,
        revision=commit,
        pretrained=name != STAND_IN,
        compute_dtype=compute_dtype,
        fingerprint=_fingerprint(tower, compute_dtype),
    )
    return FrozenSiglip2(tower, identity, device, attention=attention, compiled=compiled)


def _pinned_revision(name: str, revision: str | None) -> str:
    if revision is None and name == DEFAULT_REPOSITORY:
        return DEFAULT_REVISION
    if revision is None or len(revision) != 40 or set(revision) - set("0123456789abcdef"):
        raise EncoderLoadError(
            f"{name}: revision {revision!r}, want a 40-hex commit of that repository (--revision), "
            f"an existing local folder, or `{STAND_IN}`"
        )
    return revision


def _fetch(name: str, revision: str) -> Path:
    patterns = ["config.json", "preprocessor_config.json", "*.safetensors*"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    # The hub's client leaks the errors of whichever transport it uses; each means "not fetched".
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise EncoderLoadError(
            f"{name}@{revision[:8]}: cannot be fetched from the Hugging Face hub ({reason[0]}). "
            f"Copy the repository to a folder and pass that, or pass `{STAND_IN}` (random weights)"
        ) from error


def _load_tower(folder: Path) -> SiglipVisionModel:
    _check_preprocessing(folder / "preprocessor_config.json")
    try:
        loaded = SiglipVisionModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    # Damaged files raise whatever the layer that trips over them raises.
    except Exception as error:
        raise EncoderLoadError(f"{folder}: no SigLIP2 vision tower loads ({error})") from error
    tower, report = cast(tuple[SiglipVisionModel, dict[str, Any]], loaded)
    if report["missing_keys"] or report["mismatched_keys"]:
        wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise EncoderLoadError(
            f"{folder}: {len(wrong)} tensors of the vision tower are missing or of another shape, "
            f"the first is {wrong[0]}; want a complete `siglip` checkpoint"
        )
    strange = sorted(str(k) for k in report["unexpected_keys"] if not k.startswith(OTHER_TOWER))
    if strange:
        raise EncoderLoadError(
            f"{folder}: {len(strange)} tensors have no place in the vision tower of config.json, "
            f"the first is {strange[0]}; want the config.json that belongs to these weights"
        )
    _check_architecture(folder, tower.config)
    return tower


def _check_architecture(folder: Path, config: SiglipVisionConfig) -> None:
    fields = ("hidden_size", "image_size", "vision_use_head")
    found = {field: getattr(config, field) for field in fields}
    expected = dict(zip(fields, (FEATURE_DIM, FRAME_SIZE[0], True), strict=True))
    if found != expected:
        raise EncoderLoadError(f"{folder}/config.json: found {found}, want {expected}")


def _check_preprocessing(path: Path) -> None:
    """Ask for every field: a missing one would silently mean bicubic and 224 pixels."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EncoderLoadError(f"{path}: not a readable JSON file ({error})") from error
    for field, expected in PREPROCESSING.items():
        value = found.get(field, "nothing") if isinstance(found, dict) else "nothing"
        if value != expected:
            raise EncoderLoadError(f"{path}: {field} is {value}, this project feeds {expected}")
    further = {
        field
        for field, value in found.items()
        if field.startswith("do_") and value and field not in {*PREPROCESSING, "do_convert_rgb"}
    }
    if further:
        raise EncoderLoadError(
            f"{path}: asks for {', '.join(sorted(further))}, a step that this project does not do"
        )


def _build_stand_in() -> SiglipVisionModel:
    """Build a two-layer tower whose weights depend on the seed alone, not on library versions.

    The scales follow transformers' own initialisation of `siglip` towers. numpy's RandomState is
    frozen by NEP 19, so that every machine draws the same numbers.
    """
    height, width = FRAME_SIZE
    assert height == width
    config = SiglipVisionConfig(
        hidden_size=FEATURE_DIM,
        image_size=height,
        patch_size=16,
        num_hidden_layers=STAND_IN_LAYERS,
    )
    tower = SiglipVisionModel(config)
    numbers = np.random.RandomState(STAND_IN_SEED)
    with torch.no_grad():
        for name, parameter in sorted(cast(nn.Module, tower).named_parameters()):
            shape = tuple(parameter.shape)
            if name.endswith("bias"):
                values = np.zeros(shape)
            elif parameter.ndim == 1:  # the gains of the layer norms
                values = np.ones(shape)
            elif "position_embedding" in name:
                values = numbers.normal(0.0, FEATURE_DIM**-0.5, shape)
            elif "patch_embedding" in name:
                values = numbers.normal(0.0, np.prod(shape[1:]) ** -0.5, shape)
            else:  # Xavier-uniform matrices and the pooling probe
                bound = (6.0 / (shape[-1] + shape[-2])) ** 0.5
                values = numbers.uniform(-bound, bound, shape)
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    return tower


def _fingerprint(tower: SiglipVisionModel, compute_dtype: str) -> str:
    """Hash everything that decides a feature's bits, but for the engine that computes it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(cast(nn.Module, tower).named_parameters()):
        array = tensor.detach().float().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    config = tower.config
    contract = {
        "vision_config": {
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "num_channels": config.num_channels,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "hidden_act": config.hidden_act,
            "layer_norm_eps": config.layer_norm_eps,
        },
        "preprocessing": PREPROCESSING,
        "preprocessing_version": PREPROCESSING_VERSION,
        "input": "uint8 HWC RGB",
        "output": "pooler_output",
        "compute_dtype": compute_dtype,
        "store_dtype": "float16",
    }
    digest.update(json.dumps(contract, sort_keys=True).encode())
    return digest.hexdigest()
