"""What every frozen image encoder is: images in, named features out, the same bits at both ends.

Every forward pass has the same number of images, filled up where there are fewer: the same shapes
run the same kernels, so that a cached feature and a live one are equal bit for bit on one device.
Some kernels (bfloat16 products with AMX among them) also let a row's last bits depend on its place
in the pass. Each encoder measures whether its own do; then an image always has its view's place.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Final

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int64, UInt8
from torch import Tensor

from policy.encoders.environment import ComputeEnvironment, describe_environment, exact_float32
from policy.errors import EncoderLoadError, FeatureRangeError, ImageFormatError, first_line
from policy.spec import FRAME_SHAPE, FRAME_SIZE, ComputeDtype, EncoderIdentity, FeatureSpec

GPU_IMAGES_PER_PASS: Final = 32  # fills a GPU with ViT-B, and costs a live decision milliseconds


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Which encoder to load, and how it computes."""

    name: str
    """A registered encoder, a repository id on the Hugging Face hub, or a local folder."""
    images_per_pass: int
    """Images per forward pass; see `default_images_per_pass`."""
    features: tuple[str, ...] = ()
    """Names of the features to make; empty: the encoder's own default."""
    revision: str | None = None
    """40-hex commit on the hub; None is the pinned one of the default repository."""
    compute_dtype: ComputeDtype | None = None
    """Dtype of weights and products; None is the encoder's own choice for the device."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    compiled: bool = False
    """Fuse the network with torch.compile when it first runs: another compute environment."""
    bases: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What `ImageEncoder.fit` returned for a store's features, by feature."""


def default_images_per_pass(device: torch.device, num_views: int) -> int:
    """Return the number that suits a device: a CPU gains nothing beyond the views of a step."""
    return num_views if device.type == "cpu" else max(num_views, GPU_IMAGES_PER_PASS)


def best_compute_dtype(device: torch.device) -> ComputeDtype:
    """Return bfloat16 where the hardware multiplies it natively, else float32."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if native else "float32"


def hash_weights(tensors: Mapping[str, Tensor], contract: Mapping[str, object]) -> str:
    """Return the sha256 over an encoder's tensors and what else decides its outputs, as JSON."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().float().contiguous().cpu().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    digest.update(json.dumps(contract, sort_keys=True).encode())
    return digest.hexdigest()


class ImageEncoder(ABC):
    """A frozen encoder of camera images. Load one with `policy.encoders.registry.load_encoder`.

    It is no `nn.Module`, so that an agent that holds one neither trains nor saves it.
    """

    dataset_image_resize_shape: ClassVar[None] = None
    """Dataset images are natively 256x256 and are never resized on the way in."""
    eval_image_resize_shape: ClassVar[tuple[int, int]] = FRAME_SIZE
    """(height, width) in pixels that a simulator's or a robot's images are resized to."""

    default_features: ClassVar[tuple[str, ...]]
    """Names of the features where the settings name none."""

    def __init__(self, settings: EncoderSettings, *, library: str, known: tuple[str, ...]):
        """Prepare; EncoderLoadError: a feature is not among the `known`, or requested twice."""
        self.device = settings.device
        self.images_per_pass = settings.images_per_pass
        self.feature_names = settings.features or self.default_features
        for name in self.feature_names:
            if name not in known or self.feature_names.count(name) > 1:
                raise EncoderLoadError(
                    f"{settings.name}: features: expected each of {', '.join(known)} at most once, "
                    f"found {name!r}"
                )
        self.bases = dict(settings.bases)
        """Fitted arrays by feature; see `fit`."""
        self._compiled = settings.compiled
        self._library = library

    def _fused(self, network: Callable[..., Any], *, freezing: bool = False) -> Callable[..., Any]:
        """Compile a network where `compiled` asks for it; EncoderLoadError at a call: it cannot."""
        if not self._compiled:
            return network
        from torch._dynamo.exc import BackendCompilerFailed  # noqa: PLC0415  takes a second
        from torch._inductor import config  # noqa: PLC0415

        # One graph per shape of pass: it must not depend on which shapes were encoded before.
        fused = torch.compile(network, fullgraph=True, dynamic=False)
        chosen = config.patch(freezing=freezing)

        def run(*inputs: Tensor, **named: Any) -> Any:
            try:
                with chosen:
                    return fused(*inputs, **named)
            except BackendCompilerFailed as error:
                raise EncoderLoadError(
                    f"{self.identity.name}: the encoder cannot be compiled on this machine "
                    f"({first_line(error.inner_exception)}); install a C++ compiler, or encode "
                    "without compiling"
                ) from error

        return run

    _identity: EncoderIdentity

    @property
    def identity(self) -> EncoderIdentity:
        """Which encoder this is, and its features; compared wherever features meet."""
        return self._identity

    @abstractmethod
    def _forward(self, images: UInt8[Tensor, "n 256 256 3"]) -> dict[str, Tensor]:
        """Return each of the features of one pass, floating point `[n, *shape]`, on the device."""

    @property
    def unfitted(self) -> tuple[str, ...]:
        """Features that need `fit` before anything can be encoded."""
        return ()

    def fit(self, images: UInt8[np.ndarray, "n 256 256 3"]) -> None:
        """Fit `bases` for the features in `unfitted` to a sample of the dataset's images."""
        raise NotImplementedError(f"{type(self).__name__} has no feature to fit")

    @cached_property
    def environment(self) -> ComputeEnvironment:
        """How this process computes features, as torch was set at the first call."""
        return describe_environment(
            self.device,
            library=self._library,
            compiled=self._compiled,
            images_per_pass=self.images_per_pass,
            place_matters=self._measure_place(),
        )

    @torch.inference_mode()
    def encode(
        self,
        images: UInt8[np.ndarray, "n 256 256 3"],
        places: Int64[np.ndarray, " n"] | None = None,
    ) -> dict[str, Float16[np.ndarray, "n ..."]]:
        """Encode images, each on its own, in passes of `images_per_pass`.

        Returns every feature by name, rounded to float16: exactly what a feature store keeps.

        Args:
            images: RGB, values in [0, 255].
            places: the view of each image, below `images_per_pass`: where in a pass it is encoded
                if that matters here. None: the images fill the passes in their order.

        Raises:
            ImageFormatError: the images have another dtype or shape.
            FeatureRangeError: a feature is not finite or does not fit float16.
        """
        if images.dtype != np.uint8 or images.shape[1:] != FRAME_SHAPE:
            raise ImageFormatError(
                f"images: expected uint8 [n, 256, 256, 3], found {images.dtype} {images.shape}"
            )
        specs = self.identity.features
        encoded = {spec.name: np.empty((len(images), *spec.shape), np.float16) for spec in specs}
        if places is None or not self.environment.place_matters:
            places = np.arange(len(images)) % self.images_per_pass
        passes = _passes(places, self.images_per_pass)
        filled = np.where(passes < 0, passes.max(axis=1, keepdims=True, initial=0), passes)
        chosen = torch.from_numpy(filled).to(self.device)
        whole = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        sent = whole.to(self.device, non_blocking=True)
        # Begun all together, so that this process waits for a GPU once.
        begun = [self._begin_pass(sent[rows]) for rows in chosen]
        for rows, features in zip(passes, begun, strict=True):
            is_real = rows >= 0
            for name, values in self._end_pass(features).items():
                encoded[name][rows[is_real]] = values[is_real]
        return encoded

    def encode_views(
        self, images: UInt8[np.ndarray, "t v 256 256 3"]
    ) -> dict[str, Float16[np.ndarray, "t v ..."]]:
        """Encode every view of some steps, each view at its place in a pass; see `encode`."""
        steps, views = images.shape[:2]
        places = np.tile(np.arange(views), steps)
        encoded = self.encode(images.reshape(-1, *images.shape[2:]), places)
        return {name: rows.reshape(steps, views, *rows.shape[1:]) for name, rows in encoded.items()}

    def _begin_pass(self, images: UInt8[Tensor, "n 256 256 3"]) -> dict[str, Tensor]:
        with exact_float32(self.device):
            features = self._forward(images)
        return {name: values.float().to(torch.float16) for name, values in features.items()}

    def _end_pass(self, features: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        held = {name: values.cpu().numpy() for name, values in features.items()}
        for name, values in held.items():
            if not np.isfinite(values).all():
                raise FeatureRangeError(
                    f"{self.identity.name}: feature `{name}` is not finite or beyond float16's "
                    f"+-65504; the weights are damaged or {self.identity.compute_dtype} overflows"
                )
        return held

    @torch.inference_mode()
    def _measure_place(self) -> bool:
        """Encode one image at every place of a pass; whether any bit differs."""
        image = np.random.RandomState(0).randint(0, 256, (1, *FRAME_SHAPE), np.uint8)
        repeated = torch.from_numpy(np.repeat(image, self.images_per_pass, axis=0))
        features = self._end_pass(self._begin_pass(repeated.to(self.device)))
        return any((values != values[:1]).any() for values in features.values())


def feature_spec(
    name: str,
    shape: tuple[int, ...],
    *,
    source: str,
    basis: Float32[np.ndarray, "i o"] | None = None,
) -> FeatureSpec:
    """Describe a feature; `source` are words that change with its derivation from an output."""
    digest = hashlib.sha256(source.encode())
    if basis is not None:
        digest.update(np.ascontiguousarray(basis).data)
    return FeatureSpec(name=name, shape=shape, fingerprint=digest.hexdigest())


def _passes(
    places: Int64[np.ndarray, " n"], images_per_pass: int
) -> Int64[np.ndarray, "p {images_per_pass}"]:
    """Return which image is at which place of which pass; -1 where a filler is."""
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    number = np.arange(len(places)) - np.searchsorted(ordered, ordered)  # of each one's pass
    passes = np.full((number.max(initial=-1) + 1, images_per_pass), -1)
    passes[number, ordered] = order
    return passes
