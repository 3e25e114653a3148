"""The contract, for every encoder there is, and for a place in a pass that matters."""

from policy.encoders.base import EncoderSettings
from policy.encoders.stand_in import NAME as STAND_IN
from tests import toy_encoder
from tests.policy.encoders.encoder_contract import EncoderContract
from tests.tower import load, load_fitted, tiny_tower


class TestStandIn(EncoderContract):
    @classmethod
    def load(cls, images_per_pass):
        features = ("pooled", "grid", "grid@1")
        return load_fitted(STAND_IN, images_per_pass, device=cls.device, features=features)


class TestSiglip2Checkpoint(EncoderContract):
    @classmethod
    def load(cls, images_per_pass):
        return load_fitted(
            tiny_tower(), images_per_pass, device=cls.device, features=("pooled", "grid")
        )


class TestEfficientNet(EncoderContract):
    @classmethod
    def load(cls, images_per_pass):
        return load(
            "efficientnet-lite0", images_per_pass, device=cls.device, features=("pooled", "grid")
        )


class TestToyEncoder(EncoderContract):
    @classmethod
    def load(cls, images_per_pass):
        settings = EncoderSettings(name="toy", images_per_pass=images_per_pass, device=cls.device)
        return toy_encoder.load(settings)
