"""The probe against encoders that claim to be the one they are not."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import EncoderMismatchError
from pipeline.features.identity.probe import (
    NOISE_SEED,
    SYNTHETIC,
    TOLERANCE,
    Probe,
    check_probe,
    make_probe,
    relative_l2,
    synthetic_frames,
)
from policy.encoders.base import ImageEncoder
from policy.encoders.environment import ComputeEnvironment
from policy.encoders.stand_in import NAME as STAND_IN
from tests.pipeline.tiny import tiny_environment
from tests.tower import load, load_fitted, tiny_tower

NUM_VIEWS = 2
FEATURES = ("pooled", "grid")


Change = Callable[[np.ndarray], np.ndarray]


class Pretender(ImageEncoder):
    """Has the identity of an encoder, and changes what goes in."""

    def __init__(
        self,
        encoder: ImageEncoder,
        change: Change = lambda frames: frames,
        environment: ComputeEnvironment | None = None,
    ):
        self._encoder = encoder
        self._change = change
        self.environment = environment or encoder.environment

    @property
    def identity(self):
        return self._encoder.identity

    def _forward(self, images):
        return self._encoder._forward(images)

    def encode_views(self, images):
        return self._encoder.encode_views(self._change(images))


def by_way_of(size: int, resample: Image.Resampling) -> Change:
    """Shrink or enlarge every frame and bring it back; Pillow itself, not our resize."""

    def change(frames: np.ndarray) -> np.ndarray:
        resized = np.empty_like(frames)
        for place in np.ndindex(frames.shape[:2]):
            image = Image.fromarray(frames[place]).resize((size, size), resample)
            resized[place] = np.array(image.resize((256, 256), resample))
        return resized

    return change


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def encoder(request):
    return load_fitted(tiny_tower(), features=FEATURES, compute_dtype=request.param)


@pytest.fixture(scope="module")
def probe(encoder) -> Probe:
    real = np.random.default_rng(0).integers(0, 256, (1, NUM_VIEWS, 16, 16, 3), np.uint8)
    return make_probe(encoder, real.repeat(16, axis=2).repeat(16, axis=3))


def refusal(encoder: Pretender, probe: Probe) -> str:
    with pytest.raises(EncoderMismatchError) as caught:
        check_probe(encoder, probe, where="store")
    return str(caught.value)


def test_the_encoder_itself_passes(encoder, probe):
    check_probe(encoder, probe, where="store")
    assert probe.frames.shape[:2] == (len(SYNTHETIC) + 1, NUM_VIEWS)
    assert probe.environment == encoder.environment


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda frames: np.flip(frames, 3), id="flipped-left-right"),
        pytest.param(lambda frames: np.flip(frames, 2), id="flipped-upside-down"),
        pytest.param(lambda frames: np.flip(frames, 4), id="bgr"),
        pytest.param(by_way_of(240, Image.Resampling.BILINEAR), id="resized-to-240"),
        pytest.param(by_way_of(240, Image.Resampling.BICUBIC), id="resized-bicubic"),
        pytest.param(lambda frames: np.flip(frames, 1), id="views-swapped"),
    ],
)
def test_frames_that_arrive_changed_are_refused(encoder, probe, change):
    """In another environment, which has the tolerance; each mistake is far beyond ten of it."""
    generous = dataclasses.replace(probe, tolerance=10 * probe.tolerance)
    message = refusal(Pretender(encoder, change, tiny_environment()), generous)
    assert "relative L2" in message
    assert "in another compute environment" in message


def test_other_weights_with_the_same_fingerprint_are_refused(encoder, probe):
    dtype = encoder.identity.compute_dtype
    other = load(tiny_tower(), features=FEATURES, compute_dtype=dtype, bases=encoder.bases)
    with torch.no_grad():
        for name, weights in other._network.named_parameters():
            if name.endswith("fc2.weight"):
                weights.mul_(1.1)
    assert other.identity == encoder.identity
    assert "expected all bits in the same environment" in refusal(Pretender(other), probe)
    refusal(Pretender(other, environment=tiny_environment()), probe)


@pytest.mark.parametrize("feature", FEATURES)
def test_one_changed_bit_of_one_feature_is_refused_in_the_same_environment(encoder, probe, feature):
    changed = {name: values.copy() for name, values in probe.features.items()}
    changed[feature].view(np.uint16)[2, 1].flat[5] ^= 1
    message = refusal(Pretender(encoder), dataclasses.replace(probe, features=changed))
    assert f"`checkerboard` of view 1 a feature `{feature}` that differs" in message
    assert "expected all bits in the same environment" in message


def test_another_environment_has_a_tolerance_and_its_fields_are_named(encoder, probe):
    """A shift along each feature itself has a relative L2 that is known without computing any."""

    def shifted(share: float) -> Probe:
        wide = probe.features["grid"].astype(np.float64) * (1 + share)
        changed = probe.features | {"grid": wide.astype(np.float16)}
        return dataclasses.replace(probe, features=changed)

    other = probe.environment.model_copy(update={"threads": 99, "torch_version": "1.0"})
    near, far = shifted(0.8 * probe.tolerance), shifted(2 * probe.tolerance)
    check_probe(Pretender(encoder, environment=other), near, where="store")
    message = refusal(Pretender(encoder, environment=other), far)
    assert f"torch_version was {probe.environment.torch_version}, is 1.0" in message
    assert f"threads was {probe.environment.threads}, is 99" in message
    assert f"expected at most {probe.tolerance:.2g}" in message
    refusal(Pretender(encoder), near)  # the same environment has no tolerance


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_real_environments_differ_by_less_than_the_tolerance_allows(compute_dtype):
    """Eager attention instead of sdpa is the farthest environment that one machine has."""
    ours = load_fitted(STAND_IN, features=FEATURES, compute_dtype=compute_dtype)
    probe = make_probe(ours, synthetic_frames(1)[:1])
    ours._network.set_attn_implementation("eager")
    other = Pretender(ours, environment=tiny_environment())
    for name, live in other.encode_views(probe.frames).items():
        assert 0 < relative_l2(live, probe.features[name]).max() < TOLERANCE[compute_dtype] / 2
    check_probe(other, probe, where="store")


def test_a_store_of_another_resize_is_refused(encoder, probe):
    """Frames of 480x640 go through the project's one resize at every check; theirs was bicubic."""
    frames = probe.frames.copy()
    for view in range(NUM_VIEWS):
        numbers = np.random.RandomState(NOISE_SEED + view)
        rendered = Image.fromarray(numbers.randint(0, 256, (480, 640, 3), np.uint8))
        frames[3, view] = np.asarray(rendered.resize((256, 256), Image.Resampling.BICUBIC))
    features = encoder.encode_views(frames)
    theirs = dataclasses.replace(probe, frames=frames, features=features)
    message = refusal(Pretender(encoder, environment=tiny_environment()), theirs)
    assert "`resized noise`" in message
    assert "generated or resized differently" in message


def test_synthetic_frames_are_the_same_everywhere_and_have_no_symmetry():
    frames = synthetic_frames(3)
    np.testing.assert_array_equal(frames, synthetic_frames(3))
    np.testing.assert_array_equal(frames[0, 0, 10, 20], [20, 5, 0])
    for axis in (2, 3, 4):
        assert (np.flip(frames, axis) != frames).any(axis=(2, 3, 4)).all()
    assert (frames[:, 0] != frames[:, 1]).any(axis=(1, 2, 3)).all()


def test_the_digest_covers_everything(probe):
    others = [
        dataclasses.replace(probe, tolerance=0.5),
        dataclasses.replace(probe, environment=tiny_environment()),
        dataclasses.replace(probe, features=probe.features | {"grid": -probe.features["grid"]}),
        dataclasses.replace(probe, frames=255 - probe.frames),
    ]
    assert len({probe.digest(), *(other.digest() for other in others)}) == 5
