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
from tests.tower import load

NUM_VIEWS = 2


class Pretender:
    """Has the identity of an encoder, and changes what goes in."""

    dataset_image_resize_shape = None
    eval_image_resize_shape = (256, 256)

    def __init__(
        self,
        encoder: ImageEncoder,
        change: Callable[[torch.Tensor], torch.Tensor] = lambda frames: frames,
        engine: ComputeEnvironment | None = None,
    ):
        self.identity = encoder.identity
        self.engine = engine or encoder.environment
        self._encoder = encoder
        self._change = change

    def encode_views(self, frames: torch.Tensor) -> torch.Tensor:
        return self._encoder.encode_views(self._change(frames))


def by_way_of(size: int, resample: Image.Resampling) -> Callable[[torch.Tensor], torch.Tensor]:
    """Shrink or enlarge every frame and bring it back; Pillow itself, not our resize."""

    def change(frames: torch.Tensor) -> torch.Tensor:
        resized = frames.clone()
        for frame in resized.flatten(0, 1):
            image = Image.fromarray(frame.numpy()).resize((size, size), resample)
            frame[:] = torch.from_numpy(np.array(image.resize((256, 256), resample)))
        return resized

    return change


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def encoder(request):
    return load(STAND_IN, compute_dtype=request.param)


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
        pytest.param(lambda frames: frames.flip(3), id="flipped-left-right"),
        pytest.param(lambda frames: frames.flip(2), id="flipped-upside-down"),
        pytest.param(lambda frames: frames.flip(4), id="bgr"),
        pytest.param(by_way_of(240, Image.Resampling.BILINEAR), id="resized-to-240"),
        pytest.param(by_way_of(240, Image.Resampling.BICUBIC), id="resized-bicubic"),
        pytest.param(lambda frames: frames.flip(1), id="views-swapped"),
    ],
)
def test_frames_that_arrive_changed_are_refused(encoder, probe, change):
    """On another engine, which is granted the tolerance; each mistake is far beyond ten of it."""
    generous = dataclasses.replace(probe, tolerance=10 * probe.tolerance)
    message = refusal(Pretender(encoder, change, tiny_environment()), generous)
    assert "relative L2" in message
    assert "on another engine" in message


def test_other_weights_with_the_same_fingerprint_are_refused(encoder, probe):
    other = load(STAND_IN, compute_dtype=encoder.identity.compute_dtype)
    with torch.no_grad():
        for name, weights in other._tower.named_parameters():
            if name.endswith("fc2.weight"):
                weights.mul_(1.1)
    assert other.identity == encoder.identity
    assert "want every bit on the same engine" in refusal(Pretender(other), probe)
    refusal(Pretender(other, environment=tiny_environment()), probe)


def test_one_changed_bit_is_refused_on_the_same_engine(encoder, probe):
    features = probe.features.copy()
    features.view(np.uint16)[2, 1, 5] ^= 1
    changed = dataclasses.replace(probe, features=features)
    message = refusal(Pretender(encoder), changed)
    assert "`checkerboard` of view 1" in message
    assert "want every bit on the same engine" in message


def test_another_engine_passes_within_the_tolerance_and_names_its_fields_beyond(encoder, probe):
    """A shift along each feature itself has a relative L2 that is known without computing any."""

    def shifted(share: float) -> Probe:
        wide = probe.features.astype(np.float64) * (1 + share)
        return dataclasses.replace(probe, features=wide.astype(np.float16))

    engine = probe.environment.model_copy(update={"threads": 99, "torch_version": "1.0"})
    near, far = shifted(0.8 * probe.tolerance), shifted(2 * probe.tolerance)
    check_probe(Pretender(encoder, environment=engine), near, where="store")
    message = refusal(Pretender(encoder, environment=engine), far)
    assert f"torch_version was {probe.environment.torch_version}, is 1.0" in message
    assert f"threads was {probe.environment.threads}, is 99" in message
    assert f"want at most {probe.tolerance:.2g}" in message
    refusal(Pretender(encoder), near)  # the same engine has no tolerance


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_real_engines_differ_by_less_than_the_tolerance_allows(compute_dtype):
    """Eager attention instead of sdpa is the farthest engine that one machine has."""
    ours = load(STAND_IN, compute_dtype=compute_dtype)
    other = load(STAND_IN, compute_dtype=compute_dtype, attention="eager")
    probe = make_probe(ours, synthetic_frames(1)[:1])
    live = other.encode_views(torch.from_numpy(probe.frames)).numpy()
    assert 0 < relative_l2(live, probe.features).max() < TOLERANCE[compute_dtype] / 2
    check_probe(other, probe, where="store")


def test_a_store_of_another_resize_is_refused(encoder, probe):
    """Frames of 480x640 go through the project's one resize at every check; theirs was bicubic."""
    frames = probe.frames.copy()
    for view in range(NUM_VIEWS):
        numbers = np.random.RandomState(NOISE_SEED + view)
        rendered = Image.fromarray(numbers.randint(0, 256, (480, 640, 3), np.uint8))
        frames[3, view] = np.asarray(rendered.resize((256, 256), Image.Resampling.BICUBIC))
    features = encoder.encode_views(torch.from_numpy(frames)).numpy()
    theirs = dataclasses.replace(probe, frames=frames, features=features)
    message = refusal(Pretender(encoder, environment=tiny_environment()), theirs)
    assert "`resized noise`" in message
    assert "drawn or resized another way" in message


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
        dataclasses.replace(probe, features=probe.features * np.float16(2)),
        dataclasses.replace(probe, frames=255 - probe.frames),
    ]
    assert len({probe.digest(), *(other.digest() for other in others)}) == 5
