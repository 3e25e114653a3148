"""What every encoder must do. A subclass only says how to load one."""

import numpy as np
import pytest
import torch

from policy.encoders.base import ImageEncoder
from policy.errors import ImageFormatError
from policy.spec import EncoderIdentity


class EncoderContract:
    """Subclasses load the same encoder, with all of its features, at each call on `device`."""

    device = torch.device("cpu")

    @classmethod
    def load(cls, images_per_pass: int) -> ImageEncoder:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def images(cls):
        return np.random.default_rng(0).integers(0, 256, (7, 256, 256, 3), np.uint8)

    @pytest.fixture(scope="class")
    @classmethod
    def encoder(cls):
        return cls.load(3)

    def test_keeps_the_sizes_of_the_design(self, encoder):
        assert encoder.dataset_image_resize_shape is None
        assert encoder.eval_image_resize_shape == (256, 256)

    def test_features_have_the_shapes_and_dtypes_of_their_specs(self, encoder, images):
        encoded = encoder.encode(images)
        assert tuple(encoded) == encoder.identity.feature_names
        for spec in encoder.identity.features:
            assert encoded[spec.name].dtype == spec.dtype
            assert encoded[spec.name].shape == (7, *spec.shape)
            assert np.isfinite(encoded[spec.name]).all()

    @pytest.mark.parametrize("images_per_pass", [3, 8])
    def test_a_step_has_the_same_bits_alone_and_among_others(
        self, encoder, images, images_per_pass
    ):
        """What makes cached and live features equal: passes must be invisible."""
        encoder = encoder if images_per_pass == 3 else self.load(images_per_pass)
        steps = images[:6].reshape(2, 3, 256, 256, 3)
        together = encoder.encode_views(steps)
        for step in range(2):
            for name, alone in encoder.encode_views(steps[[step]]).items():
                np.testing.assert_array_equal(alone[0], together[name][step])

    def test_images_are_encoded_independently(self, encoder, images):
        """Another image in the same pass changes nothing; order and neighbors do not count."""
        places = np.zeros(2, np.int64)
        swapped = encoder.encode(images[[1, 0]], places)
        for name, features in encoder.encode(images[:2], places).items():
            np.testing.assert_array_equal(swapped[name], features[[1, 0]])
            assert not np.array_equal(features[0], features[1])

    def test_loading_twice_gives_one_identity_and_the_same_bits(self, encoder, images):
        again = self.load(3)
        assert again.identity == encoder.identity
        assert again.environment == encoder.environment
        identity = encoder.identity
        assert EncoderIdentity.model_validate_json(identity.model_dump_json()) == identity
        expected = encoder.encode(images[:4])
        for name, features in again.encode(images[:4]).items():
            np.testing.assert_array_equal(features, expected[name])

    def test_each_feature_has_a_fingerprint_of_its_own(self, encoder):
        specs = encoder.identity.features
        assert len({spec.fingerprint for spec in specs}) == len(specs)
        parts = {encoder.identity.only([spec.name]).fingerprint for spec in specs}
        assert len(parts) == len(specs)

    def test_images_of_another_shape_are_refused(self, encoder):
        with pytest.raises(ImageFormatError, match="expected uint8"):
            ImageEncoder.encode.__wrapped__.__wrapped__(
                encoder, np.zeros((1, 128, 128, 3), np.uint8)
            )
