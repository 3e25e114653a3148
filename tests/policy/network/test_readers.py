"""The reader of features against numpy."""

import numpy as np
import pytest
import torch

from policy.network.readers import (
    FeatureReader,
    InstructionReader,
    InstructionReaderConfig,
    ReaderConfig,
)

VIEWS = 2


def make(shape, projection_dim: int = 6) -> FeatureReader:
    torch.manual_seed(0)
    return FeatureReader(ReaderConfig(projection_dim=projection_dim), VIEWS, shape)


def random_features(shape, steps: int = 40) -> np.ndarray:
    """[b, 2, VIEWS, *shape], with another mean and spread at every value."""
    numbers = np.random.default_rng(0)
    mean, std = numbers.normal(size=(VIEWS, *shape)), numbers.uniform(0.5, 3, (VIEWS, *shape))
    return (numbers.normal(size=(steps, 2, VIEWS, *shape)) * std + mean).astype(np.float32)


def fit(reader, features: np.ndarray) -> None:
    """Take the statistics of the features, value by value, as training does."""
    over = features.reshape(-1, *features.shape[2:]).astype(np.float64)
    mean, std = (torch.from_numpy(found).float() for found in (over.mean(0), over.std(0)))
    reader.standardizer.fit(mean, std)


@pytest.mark.parametrize("shape", [(10,), (3, 5, 4)])
def test_values_are_standardized_one_by_one_and_each_view_has_its_own_matrix(shape):
    reader, features = make(shape), random_features(shape)
    fit(reader, features)
    flat = features.reshape(*features.shape[:3], -1)
    over = flat.reshape(-1, *flat.shape[2:])
    standardized = (flat - over.mean(0)) / over.std(0)
    found = reader(torch.from_numpy(features)).detach().numpy()
    for view, project in enumerate(reader.per_view):
        weight, bias = project.weight.detach().numpy(), project.bias.detach().numpy()
        expected = standardized[:, :, view] @ weight.T + bias
        np.testing.assert_allclose(found[:, :, view], expected, atol=2e-5)


def test_each_view_is_learned_by_weights_of_its_own():
    reader = make((3, 5, 4))
    found = reader(torch.from_numpy(random_features((3, 5, 4), steps=2)))
    assert found.shape == (2, 2, VIEWS, 6)
    found[:, :, 0].square().sum().backward()
    for name, parameter in reader.named_parameters():
        assert parameter.grad.any() == (name.split(".")[1] != "1"), name


def test_equal_vectors_of_instructions_have_no_spread():
    """Three spellings of one instruction; the mean of equal numbers is not exactly them."""
    reader = InstructionReader(InstructionReaderConfig(), 8, 4, 6)
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 8))).float()
    reader.fit(vectors.expand(3, -1))
    assert reader.spread == 1
