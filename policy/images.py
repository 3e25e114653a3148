"""The only resize of the project: camera frames of any size to the tower's 256x256.

SigLIP2's own preprocessing is a straight (not aspect-preserving) bilinear, antialiased resize.
Pillow does exactly what transformers' image processor does where torchvision is absent; torch's
uint8 resize differs from it by one level in half a percent of the pixels, and a resize without
antialiasing by 34 levels.

Source: google/siglip2-base-patch16-256, preprocessor_config.json (`resample: 2`, size 256x256).
"""

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from policy.errors import FrameFormatError
from policy.spec import FRAME_SHAPE, FRAME_SIZE


def resize_frames(frames: UInt8[Tensor, "n h w 3"]) -> UInt8[Tensor, "n 256 256 3"]:
    """Resize RGB frames to 256x256; frames that have that size already come back untouched.

    Args:
        frames: values in [0, 255], channels last, on the CPU.

    Returns:
        The resized frames; the very same tensor if it is 256x256 already.

    Raises:
        FrameFormatError: `frames` is not uint8 [n, h, w, 3] with at least one pixel.
    """
    is_frames = frames.dtype == torch.uint8 and frames.ndim == 4 and frames.shape[-1] == 3
    if not is_frames or 0 in frames.shape[1:]:
        raise FrameFormatError(
            f"frames are {frames.dtype} {tuple(frames.shape)}, want uint8 [n, height, width, 3] RGB"
        )
    if tuple(frames.shape[1:]) == FRAME_SHAPE:
        return frames
    height, width = FRAME_SIZE
    resized = np.empty((len(frames), *FRAME_SHAPE), np.uint8)
    for row, frame in zip(resized, frames.numpy(), strict=True):
        image = Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR)
        row[:] = np.asarray(image)
    return torch.from_numpy(resized)
