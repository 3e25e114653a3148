"""The probe: a few frames with their features, which tell encoders apart by their output.

It shows what a fingerprint cannot: a compute environment that gives other values, frames that
arrive flipped or in another color order, a changed resize.

The synthetic frames are drawn again at every check and the last of them is resized then, so that
the probe also covers the project's one resize. They have no symmetry: a flip, another order of
channels or views, or a blur changes each of them.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Float, Float16, Float64, UInt8

from pipeline.errors import EncoderMismatchError
from policy.encoders.base import ImageEncoder
from policy.encoders.environment import ComputeEnvironment
from policy.images import resize_images
from policy.spec import FRAME_SHAPE, FRAME_SIZE, ComputeDtype

# Relative L2 of a feature between environments, each bound some way above what was seen and far
# below what any mistake does. Seen on the stand-in and on a random 12-layer encoder: 8e-5 in
# float32 (float16's rounding, mostly) and 5e-3 in bfloat16, over thread counts, batch shapes, sdpa
# and eager attention and instruction sets. Mistakes on the most sensitive frame: a flip 0.6 or
# more, BGR 1.3, a resize by way of 240 pixels 0.3, a bicubic one 0.1.
TOLERANCE: Final[dict[ComputeDtype, float]] = {"float32": 1e-3, "bfloat16": 2e-2}
SYNTHETIC: Final = ("gradient", "noise", "checkerboard", "resized noise")
NOISE_SEED: Final = 256  # any fixed number
RENDERED_SIZE: Final = (480, 640)  # height, width in pixels; what most simulators and cameras give


@dataclass(frozen=True)
class Probe:
    """Frames, and the features that an encoder gave them."""

    frames: UInt8[np.ndarray, "p v 256 256 3"]
    """RGB in [0, 255]; the first `len(SYNTHETIC)` are drawn, the others are real."""
    features: dict[str, Float16[np.ndarray, "p v ..."]]
    """Their features by name, as a store keeps them."""
    environment: ComputeEnvironment
    tolerance: float
    """How far another environment's feature may be: relative L2, image by image."""

    @property
    def real_frames(self) -> UInt8[np.ndarray, "q v 256 256 3"]:
        """The frames that come from a dataset."""
        return self.frames[len(SYNTHETIC) :]

    def only(self, names: Iterable[str]) -> "Probe":
        """Return the probe with just some of its features."""
        return replace(self, features={name: self.features[name] for name in names})

    def digest(self) -> str:
        """Return the sha256 of everything in the probe."""
        digest = hashlib.sha256(f"{self.frames.shape} {self.tolerance!r}".encode())
        digest.update(self.environment.digest().encode())
        digest.update(np.ascontiguousarray(self.frames).tobytes())
        for name, features in sorted(self.features.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(features).tobytes())
        return digest.hexdigest()


def make_probe(encoder: ImageEncoder, real_frames: UInt8[np.ndarray, "q v 256 256 3"]) -> Probe:
    """Encode the synthetic frames and some real ones, RGB in [0, 255], every view of each step."""
    frames = np.concatenate([synthetic_frames(real_frames.shape[1]), real_frames])
    return Probe(
        frames=frames,
        features=encoder.encode_views(frames),
        environment=encoder.environment,
        tolerance=TOLERANCE[encoder.identity.compute_dtype],
    )


def check_probe(encoder: ImageEncoder, probe: Probe, *, where: str) -> None:
    """Refuse an encoder that gives the probe of a store or a run other features than it had.

    In the environment of the probe every bit must be equal; in another one each feature must be
    within the probe's tolerance. The fingerprint was compared already.

    Raises:
        EncoderMismatchError: they differ; the message names frame, feature and distance and, where
            the environment is another one, what differs in it.
    """
    drawn = synthetic_frames(probe.frames.shape[1])
    frames = np.concatenate([drawn, probe.real_frames])
    live = encoder.encode_views(frames)
    differences = probe.environment.differences(encoder.environment)
    for name, expected in probe.features.items():
        if np.array_equal(live[name], expected):
            continue
        distance = relative_l2(live[name], expected)
        worst = distance.max()
        if differences and worst <= probe.tolerance:
            continue
        row, view = map(int, np.unravel_index(distance.argmax(), distance.shape))
        frame = SYNTHETIC[row] if row < len(SYNTHETIC) else f"real frame {row - len(SYNTHETIC)}"
        is_same = np.array_equal(frames[row], probe.frames[row])
        redrawn = "" if is_same else ", its pixels are generated or resized differently now"
        want = "all bits in the same environment"
        if differences:
            other = f"another compute environment ({'; '.join(differences)})"
            want = f"at most {probe.tolerance:.2g} in {other}"
        raise EncoderMismatchError(
            f"{where}: {encoder.identity.name} computes for probe frame `{frame}` of view {view} a "
            f"feature `{name}` that differs from the stored one: relative L2 {worst:.2g}"
            f"{redrawn}, expected {want}; the encoder, its input or a library has changed: restore "
            f"it, or embed and train again"
        )


def relative_l2(
    found: Float[np.ndarray, "p v ..."], expected: Float[np.ndarray, "p v ..."]
) -> Float64[np.ndarray, "p v"]:
    """Return the distance of every feature from the expected one, in lengths of the latter."""
    flat = (*expected.shape[:2], -1)
    wide = expected.astype(np.float64).reshape(flat)
    distance = np.linalg.norm(found.astype(np.float64).reshape(flat) - wide, axis=-1)
    return np.asarray(distance / np.linalg.norm(wide, axis=-1))


def synthetic_frames(num_views: int) -> UInt8[np.ndarray, "p v 256 256 3"]:
    """Draw the frames that every probe starts with, another set for each view."""
    views = [_draw(view) for view in range(num_views)]
    return np.stack([np.stack(frames) for frames in zip(*views, strict=True)])


def _draw(view: int) -> tuple[np.ndarray, ...]:
    height, width = FRAME_SIZE
    y, x = np.mgrid[:height, :width]
    gradient = np.stack([x, y // 2, np.full_like(x, 40 * view % 256)], axis=-1).astype(np.uint8)
    # Two colors with different channels, darker towards the lower right.
    cell = 11 + view
    is_light = ((x // cell + y // cell) % 2 == 0)[..., None]
    colors = np.where(is_light, [240, 160, 40], [20, 60, 120])
    shade = 255 - 128 * (x + y) // (height + width)
    checkerboard = (colors * shade[..., None] // 255).astype(np.uint8)
    resized = resize_images(_noise((*RENDERED_SIZE, 3), view)[None])[0]
    return gradient, _noise(FRAME_SHAPE, view), checkerboard, resized


def _noise(shape: tuple[int, int, int], view: int) -> UInt8[np.ndarray, "h w 3"]:
    """Draw every value independently: no other picture shows a changed resize as clearly."""
    # numpy's RandomState is frozen by NEP 19: every version draws the same numbers.
    return np.random.RandomState(NOISE_SEED + view).randint(0, 256, shape, np.uint8)
