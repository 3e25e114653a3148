"""The one resize, against transformers' own image processor; seeded crops and color changes."""

import numpy as np
import pytest
from PIL import Image
from transformers import SiglipImageProcessorPil

from policy.errors import ImageFormatError
from policy.images import COLOR_CHANGE, SMALLEST_CROP, Augmentation, augment_images, resize_images
from policy.images import draw_augmentation as draw

WHOLE = (0.0, 0.0, 256.0, 256.0)


def upstream_processor() -> SiglipImageProcessorPil:
    return SiglipImageProcessorPil(
        size={"height": 256, "width": 256}, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


@pytest.mark.parametrize("size", [(480, 640), (300, 257), (84, 84)])
def test_resize_equals_the_upstream_processor_bit_for_bit(size):
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    processor = upstream_processor()
    expected = processor(
        images=list(frames), do_rescale=False, do_normalize=False, return_tensors="np"
    )["pixel_values"]

    resized = resize_images(frames).transpose(0, 3, 1, 2)

    np.testing.assert_array_equal(resized, expected)


def test_native_frames_come_back_untouched():
    frames = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    assert resize_images(frames) is frames


@pytest.mark.parametrize("frames", [np.zeros((1, 0, 5, 3), np.uint8)])
def test_frames_without_pixels_are_refused(frames):
    with pytest.raises(ImageFormatError, match="expected uint8"):
        resize_images(frames)


def quadrants() -> np.ndarray:
    """A frame of four plain colors; uint8 [1, 256, 256, 3]."""
    colors = np.array([[[200, 0, 0], [0, 200, 0]], [[0, 0, 200], [40, 40, 40]]], np.uint8)
    return colors.repeat(128, axis=0).repeat(128, axis=1)[None]


def test_nothing_changed_gives_the_same_bits():
    frames = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    np.testing.assert_array_equal(
        augment_images(frames, Augmentation(WHOLE, 1.0, 1.0, 1.0)), frames
    )


@pytest.mark.parametrize(
    ("crop", "row", "column"),
    [
        ((0.0, 0.0, 99.0, 99.0), 0, 0),
        ((150.0, 9.0, 249.0, 99.0), 0, 1),
        ((9.0, 150.0, 99.0, 249.0), 1, 0),
    ],
)
def test_a_crop_is_left_top_right_bottom(crop, row, column):
    frames = quadrants()
    cropped = augment_images(frames, Augmentation(crop, 1.0, 1.0, 1.0))
    np.testing.assert_array_equal(cropped[0, 0, 0], frames[0, 255 * row, 255 * column])
    assert (cropped == cropped[:, :1, :1]).all()


def test_colors_change_as_named():
    frames = quadrants()
    darker = augment_images(frames, Augmentation(WHOLE, 0.5, 1.0, 1.0))
    np.testing.assert_array_equal(darker, frames // 2)
    gray = augment_images(frames, Augmentation(WHOLE, 1.0, 1.0, 0.0))
    assert (gray == gray[..., :1]).all()
    flat = augment_images(frames, Augmentation(WHOLE, 1.0, 0.0, 1.0))
    assert (flat == flat[:, :1, :1]).all()


def test_the_seed_decides_and_every_number_of_it_counts():
    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(0, 2, 3), draw(1, 0, 3), draw(1, 2, 0)}) == 4


def test_draws_stay_in_their_ranges_and_use_them():
    drawn = [draw(number) for number in range(400)]
    crops = np.array([one.crop for one in drawn])
    assert crops.min() >= 0
    assert crops.max() <= 256
    sides = (crops[:, 2:] - crops[:, :2]) / 256
    np.testing.assert_allclose(sides[:, 0], sides[:, 1])
    assert SMALLEST_CROP <= sides.min() < SMALLEST_CROP + 0.01
    assert 0.99 < sides.max() <= 1
    for name in ("brightness", "contrast", "saturation"):
        factors = np.array([getattr(one, name) for one in drawn])
        assert 1 - COLOR_CHANGE <= factors.min() < 0.85
        assert 1.15 < factors.max() <= 1 + COLOR_CHANGE


def test_crop_and_pad_keep_the_shape_of_things():
    """Against Pillow on the cropped or the padded picture, of even margins."""
    picture = np.random.default_rng(3).integers(0, 256, (1, 480, 640, 3), np.uint8)
    middle = np.ascontiguousarray(picture[:, :, 80:560])
    np.testing.assert_array_equal(resize_images(picture, "crop"), resize_images(middle))
    padded = resize_images(picture, "pad")[0]
    shown = Image.fromarray(picture[0]).resize((256, 192), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(padded[32:224], np.asarray(shown))
    assert not padded[:32].any()
    assert not padded[224:].any()
    tall = picture.transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(
        resize_images(np.ascontiguousarray(tall), "pad")[0, :, :32], np.zeros((256, 32, 3))
    )


def test_every_fit_leaves_a_square_picture_as_stretch_does():
    picture = np.random.default_rng(4).integers(0, 256, (1, 300, 300, 3), np.uint8)
    for fit in ("crop", "pad"):
        np.testing.assert_array_equal(resize_images(picture, fit), resize_images(picture))
