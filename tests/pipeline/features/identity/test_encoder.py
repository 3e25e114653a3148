"""Loading again the encoder that made some features."""

import pytest

from pipeline.errors import EncoderMismatchError
from pipeline.features.identity.encoder import load_same_encoder
from policy.encoders.stand_in import NAME as STAND_IN
from policy.spec import EncoderIdentity
from tests.pipeline.tiny import tiny_identity
from tests.tower import load


def test_an_encoder_from_a_local_folder_must_be_named():
    local = EncoderIdentity(
        name="my-siglip2",
        revision="local",
        pretrained=True,
        compute_dtype="float32",
        fingerprint="f" * 64,
    )
    with pytest.raises(EncoderMismatchError, match=r"local folder my-siglip2.*--encoder"):
        load_same_encoder(local, None, where="run")


def test_the_right_encoder_is_loaded_in_the_dtype_of_the_features():
    for compute_dtype in ("float32", "bfloat16"):
        made_by = load(STAND_IN, compute_dtype=compute_dtype).identity
        assert load_same_encoder(made_by, None, where="run").identity == made_by


def test_another_encoder_is_refused_by_its_fingerprint():
    with pytest.raises(EncoderMismatchError, match=r"run: .*stand-in is another encoder"):
        load_same_encoder(tiny_identity(), STAND_IN, where="run")
