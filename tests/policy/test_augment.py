"""Seeded crops and colour changes."""

import numpy as np
import pytest

from policy.augment import COLOUR_CHANGE, SMALLEST_CROP, Augmentation, augment_frames
from policy.augment import draw_augmentation as draw

WHOLE = (0.0, 0.0, 256.0, 256.0)


def quadrants() -> np.ndarray:
    """A frame of four plain colours; uint8 [1, 256, 256, 3]."""
    colours = np.array([[[200, 0, 0], [0, 200, 0]], [[0, 0, 200], [40, 40, 40]]], np.uint8)
    return colours.repeat(128, axis=0).repeat(128, axis=1)[None]


def test_nothing_changed_gives_the_same_bits():
    frames = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    np.testing.assert_array_equal(
        augment_frames(frames, Augmentation(WHOLE, 1.0, 1.0, 1.0)), frames
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
    cropped = augment_frames(frames, Augmentation(crop, 1.0, 1.0, 1.0))
    np.testing.assert_array_equal(cropped[0, 0, 0], frames[0, 255 * row, 255 * column])
    assert (cropped == cropped[:, :1, :1]).all()


def test_colours_change_as_named():
    frames = quadrants()
    darker = augment_frames(frames, Augmentation(WHOLE, 0.5, 1.0, 1.0))
    np.testing.assert_array_equal(darker, frames // 2)
    grey = augment_frames(frames, Augmentation(WHOLE, 1.0, 1.0, 0.0))
    assert (grey == grey[..., :1]).all()
    flat = augment_frames(frames, Augmentation(WHOLE, 1.0, 0.0, 1.0))
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
        assert 1 - COLOUR_CHANGE <= factors.min() < 0.85
        assert 1.15 < factors.max() <= 1 + COLOUR_CHANGE
