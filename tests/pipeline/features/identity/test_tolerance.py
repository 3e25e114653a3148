"""The ways to compute a feature, each against a plain computation of it or a bound on it."""

import numpy as np
import pytest
import torch

from pipeline.features.identity.probe import TOLERANCE, make_probe, relative_l2
from pipeline.features.identity.tolerance import STEPS_TOGETHER, EngineComparison, before_rounding
from pipeline.features.identity.video_loss import through_video
from policy.encoders.stand_in import NAME as STAND_IN
from tests.tower import load

NUM_VIEWS = 2


def smooth_frames(num_steps: int) -> np.ndarray:
    """Frames as a camera sees them: large areas, soft edges; uint8 [t, v, 256, 256, 3]."""
    y, x = np.mgrid[:256, :256] / 256
    numbers = np.random.default_rng(0)
    waves = [
        np.sin(2 * np.pi * (a * x + b * y + c))
        for a, b, c in numbers.uniform(0, 3, (num_steps * NUM_VIEWS * 3, 3))
    ]
    pixels = 127.5 + 100 * np.array(waves).reshape(num_steps, NUM_VIEWS, 3, 256, 256)
    return np.moveaxis(pixels, 2, -1).round().astype(np.uint8)


@pytest.fixture(scope="module")
def encoder():
    return load(STAND_IN, compute_dtype="float32")


@pytest.fixture(scope="module")
def variants(encoder):
    probe = make_probe(encoder, smooth_frames(2))
    comparison = EngineComparison(encoder.identity, probe, encoder=None, where="store")
    live = encoder.encode_views(torch.from_numpy(smooth_frames(2))).numpy()
    np.testing.assert_array_equal(comparison.reference, live)
    return comparison.reference, {v.name: v for v in comparison.variants(compiled=False)}


def farthest(variants, name: str) -> float:
    reference, held = variants
    return float(relative_l2(held[name].features, reference).max())


def test_the_engine_of_the_store_is_this_one(variants):
    assert farthest(variants, "the engine that made the store") == 0


def test_other_engines_differ_and_stay_within_the_tolerance(variants):
    for name in (f"{STEPS_TOGETHER} steps a pass", "eager attention"):
        assert farthest(variants, name) < TOLERANCE["float32"]
    assert farthest(variants, "eager attention") > 0


def test_bfloat16_products_are_what_an_encoder_in_bfloat16_gives(variants):
    other = load(STAND_IN, compute_dtype="bfloat16")
    expected = other.encode_views(torch.from_numpy(smooth_frames(2))).numpy()
    np.testing.assert_array_equal(variants[1]["bfloat16 products"].features, expected)
    assert TOLERANCE["float32"] < farthest(variants, "bfloat16 products") < TOLERANCE["bfloat16"]


def test_a_value_before_rounding_rounds_to_itself():
    features = np.random.default_rng(0).normal(0, 30, (3, 2, 768)).astype(np.float16)
    unrounded = before_rounding(features)
    # All but the borders of intervals, where half a unit of a power of two is too much below it.
    assert np.mean(unrounded.astype(np.float16) == features) > 0.999
    # Half a unit of 11 bits: the relative error is at most 2^-11, and somewhere near it.
    assert 2**-13 < np.abs(unrounded / features - 1).max() <= 2**-11


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_a_video_keeps_a_frame_roughly_and_not_exactly(codec):
    frames = smooth_frames(1)[0]
    decoded = through_video(frames, codec)
    error = np.abs(decoded.astype(float) - frames)
    assert decoded.shape == frames.shape
    assert 0 < error.mean() < 4  # levels of 255: lossy, and in the right colours and places
    assert np.abs(decoded.astype(float) - frames[..., ::-1]).mean() > 20


def test_what_a_video_takes_away_is_measured_in_features(variants):
    for name in ("frame through H.264, crf 23", "frame through AV1, crf 30"):
        assert TOLERANCE["float32"] < farthest(variants, name) < 0.5
