"""The one resize, against transformers' own image processor."""

import numpy as np
import pytest
import torch
from transformers import SiglipImageProcessorPil

from policy.errors import FrameFormatError
from policy.images import resize_frames


def upstream_processor() -> SiglipImageProcessorPil:
    return SiglipImageProcessorPil(
        size={"height": 256, "width": 256},
        resample=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


@pytest.mark.parametrize("size", [(480, 640), (300, 257), (84, 84)])
def test_resize_equals_the_upstream_processor_bit_for_bit(size):
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    processor = upstream_processor()
    expected = processor(
        images=list(frames), do_rescale=False, do_normalize=False, return_tensors="np"
    )["pixel_values"]

    resized = resize_frames(torch.from_numpy(frames)).permute(0, 3, 1, 2).numpy()

    np.testing.assert_array_equal(resized, expected)


def test_native_frames_come_back_untouched():
    frames = torch.randint(0, 256, (2, 256, 256, 3), dtype=torch.uint8)
    assert resize_frames(frames) is frames


@pytest.mark.parametrize(
    "frames",
    [torch.zeros(1, 0, 5, 3, dtype=torch.uint8)],
)
def test_frames_without_pixels_are_refused(frames):
    with pytest.raises(FrameFormatError, match="want uint8"):
        resize_frames(frames)
