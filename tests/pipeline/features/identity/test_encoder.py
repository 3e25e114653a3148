"""Loading again the encoder that made some features."""

import pytest
import torch

from pipeline.errors import EncoderMismatchError
from pipeline.features.identity.encoder import load_like, refuse_other_encoder
from policy.encoders.base import ImageEncoder
from policy.encoders.stand_in import NAME as STAND_IN
from policy.spec import EncoderIdentity
from tests.pipeline.tiny import tiny_identity
from tests.tower import load, load_fitted, tiny_tower


def load_again(encoder: ImageEncoder) -> ImageEncoder:
    held = encoder.identity, encoder.environment, encoder.bases
    return load_like(*held, name=None, where="run", device=torch.device("cpu"))


def refusal(encoder: ImageEncoder, made_by: EncoderIdentity) -> str:
    with pytest.raises(EncoderMismatchError) as caught:
        refuse_other_encoder(encoder, made_by, where="run")
    return str(caught.value)


def test_an_encoder_from_a_local_folder_must_be_named():
    with pytest.raises(EncoderMismatchError, match=r"run: .*local folder tower.*--encoder"):
        load_again(load(tiny_tower()))


@pytest.mark.parametrize("settings", [{"compute_dtype": "bfloat16"}, {"compute_dtype": "float32"}])
def test_it_is_loaded_with_the_dtype_passes_and_features_of_what_it_made(settings):
    made_by = load_fitted(STAND_IN, 8, features=("grid", "pooled"), **settings)
    again = load_again(made_by)
    assert (again.identity, again.images_per_pass) == (made_by.identity, 8)
    with pytest.raises(EncoderMismatchError, match="different weights, preprocessing or dtype"):
        load_like(
            made_by.identity.model_copy(update={"weights": "0" * 64}),
            *(made_by.environment, made_by.bases),
            **{"name": None, "where": "run", "device": torch.device("cpu")},
        )


def test_another_encoder_is_refused_by_what_differs():
    encoder = load_fitted(tiny_tower(), features=("pooled", "grid"))
    other_basis = load(
        tiny_tower(), features=("pooled", "grid"), bases={"grid": -encoder.bases["grid"]}
    )
    assert "with different weights, preprocessing or dtype" in refusal(encoder, tiny_identity())
    message = refusal(other_basis, encoder.identity)
    assert "with different layer, pooling or basis of `grid`; pass the right one" in message
