"""Seeded crops and colour changes of frames, from which a cache keeps variants.

Knows frames; nothing about episodes or encoders. A frozen encoder sees a frame once, so that the
random crops that visuomotor policies are trained with have to be drawn before it and kept.

Source: real-stanford/diffusion_policy@5ba07ac crops 76 of 84 pixels, the smallest share here.
Differs from the source: the share is drawn too, and brightness, contrast and saturation change.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance

from policy.spec import FRAME_SIZE

SMALLEST_CROP: Final = 76 / 84  # share of a side that stays
COLOUR_CHANGE: Final = 0.2  # largest relative change of brightness, contrast and saturation


@dataclass(frozen=True)
class Augmentation:
    """One crop and colour change, the same for every frame it is applied to."""

    crop: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels of a 256x256 frame."""
    brightness: float
    """Factor of every value; 1 leaves them as they are."""
    contrast: float
    """Factor of the distance from the frame's mean grey."""
    saturation: float
    """Factor of the distance from each pixel's grey."""


def draw_augmentation(*seed: int) -> Augmentation:
    """Draw an augmentation that depends on the seed's numbers, all at least 0, and nothing else."""
    numbers = np.random.default_rng(seed)
    height, width = FRAME_SIZE
    share = numbers.uniform(SMALLEST_CROP, 1.0)
    left, top = numbers.uniform(0, 1 - share, 2)
    factors = numbers.uniform(1 - COLOUR_CHANGE, 1 + COLOUR_CHANGE, 3)
    crop = (
        float(left * width),
        float(top * height),
        float((left + share) * width),
        float((top + share) * height),
    )
    brightness, contrast, saturation = map(float, factors)
    return Augmentation(crop, brightness, contrast, saturation)


def augment_frames(
    frames: UInt8[np.ndarray, "t 256 256 3"], augmentation: Augmentation
) -> UInt8[np.ndarray, "t 256 256 3"]:
    """Crop and resize back to 256x256, bilinear and antialiased, then change the colours.

    Args:
        frames: RGB, values in [0, 255].
        augmentation: applied to every frame alike.
    """
    return np.stack([_augment(frame, augmentation) for frame in frames])


def _augment(frame: np.ndarray, augmentation: Augmentation) -> np.ndarray:
    size = (FRAME_SIZE[1], FRAME_SIZE[0])
    bilinear = Image.Resampling.BILINEAR
    image = Image.fromarray(frame).resize(size, bilinear, box=augmentation.crop)
    image = ImageEnhance.Brightness(image).enhance(augmentation.brightness)
    image = ImageEnhance.Contrast(image).enhance(augmentation.contrast)
    return np.asarray(ImageEnhance.Color(image).enhance(augmentation.saturation))
