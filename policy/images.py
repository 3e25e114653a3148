"""Camera images before the encoder, as numpy arrays: the one resize, and augmentation.

SigLIP2's own preprocessing is a straight (not aspect-preserving) bilinear, antialiased resize.
Pillow does exactly what transformers' image processor does; torch's uint8 resize differs by one
level in half a percent of the pixels, and a resize without antialiasing by 34 levels. A frozen
encoder sees a frame once: random crops are drawn before it and cached as variants.

Source: google/siglip2-base-patch16-256, preprocessor_config.json (`resample: 2`, size 256x256);
real-stanford/diffusion_policy@5ba07ac crops 76 of 84 pixels, the smallest share here. Differs from
the latter: the share is drawn too, and brightness, contrast and saturation change.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance

from policy.errors import ImageFormatError
from policy.spec import FRAME_SHAPE, FRAME_SIZE, Fit

SMALLEST_CROP: Final = 76 / 84  # share of a side that stays
COLOR_CHANGE: Final = 0.2  # largest relative change of brightness, contrast and saturation


def resize_images(
    images: UInt8[np.ndarray, "n h w 3"], fit: Fit = "stretch"
) -> UInt8[np.ndarray, "n 256 256 3"]:
    """Resize RGB images to 256x256; images of that size are returned untouched.

    Values are in [0, 255]; `fit` is what becomes of images that are not square.

    Raises:
        ImageFormatError: `images` is not uint8 [n, h, w, 3] with at least one pixel.
    """
    is_rgb = images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == 3
    if not is_rgb or 0 in images.shape[1:]:
        raise ImageFormatError(
            f"images: expected uint8 [n, height, width, 3] RGB, found {images.dtype} {images.shape}"
        )
    if images.shape[1:] == FRAME_SHAPE:
        return images
    if fit == "crop":  # the middle square
        side = min(images.shape[1:3])
        top, left = ((length - side) // 2 for length in images.shape[1:3])
        images = np.ascontiguousarray(images[:, top : top + side, left : left + side])
    (top, left), (height, width) = (0, 0), FRAME_SIZE
    if fit == "pad":
        scale = FRAME_SIZE[0] / max(images.shape[1:3])
        height, width = (max(1, round(length * scale)) for length in images.shape[1:3])
        top, left = (FRAME_SIZE[0] - height) // 2, (FRAME_SIZE[1] - width) // 2
    resized = np.zeros((len(images), *FRAME_SHAPE), np.uint8)
    for row, image in zip(resized, images, strict=True):
        smooth = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        row[top : top + height, left : left + width] = np.asarray(smooth)
    return resized


@dataclass(frozen=True)
class Augmentation:
    """One crop and color change, the same for every image it is applied to."""

    crop: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels of a 256x256 image."""
    brightness: float
    contrast: float
    saturation: float
    """Factors of every value, of its distance from the image's mean gray, and of that from its
    pixel's gray; 1 changes nothing."""


def draw_augmentation(*seed: int) -> Augmentation:
    """Draw an augmentation that depends on the seed's numbers, all at least 0, and nothing else."""
    numbers = np.random.default_rng(seed)
    height, width = FRAME_SIZE
    share = numbers.uniform(SMALLEST_CROP, 1.0)
    left, top = numbers.uniform(0, 1 - share, 2).tolist()
    crop = (left * width, top * height, (left + share) * width, (top + share) * height)
    return Augmentation(crop, *numbers.uniform(1 - COLOR_CHANGE, 1 + COLOR_CHANGE, 3).tolist())


def augment_images(
    images: UInt8[np.ndarray, "n 256 256 3"], augmentation: Augmentation
) -> UInt8[np.ndarray, "n 256 256 3"]:
    """Crop RGB images and resize back to 256x256, bilinear and antialiased; then change colors."""

    def augment(pixels: np.ndarray) -> np.ndarray:
        bilinear = Image.Resampling.BILINEAR
        image = Image.fromarray(pixels).resize(FRAME_SIZE[::-1], bilinear, box=augmentation.crop)
        image = ImageEnhance.Brightness(image).enhance(augmentation.brightness)
        image = ImageEnhance.Contrast(image).enhance(augmentation.contrast)
        return np.asarray(ImageEnhance.Color(image).enhance(augmentation.saturation))

    return np.stack([augment(image) for image in images])
