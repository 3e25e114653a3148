"""Scaling, against numpy."""

import numpy as np
import torch

from policy.network.normalizer import FeatureStandardizer, MinMaxNormalizer


def test_range_maps_to_minus_one_and_one_and_back():
    normalizer = MinMaxNormalizer(3)
    low, high = torch.tensor([-2.0, 0.0, 10.0]), torch.tensor([2.0, 0.5, 30.0])
    normalizer.fit(low, high)
    torch.testing.assert_close(normalizer.normalize(low), -torch.ones(3))
    torch.testing.assert_close(normalizer.normalize(high), torch.ones(3))
    values = torch.tensor([0.3, 0.2, 17.0])
    torch.testing.assert_close(normalizer.unnormalize(normalizer.normalize(values)), values)


def test_constant_dimension_is_zero_and_comes_back():
    normalizer = MinMaxNormalizer(1)
    normalizer.fit(torch.tensor([4.0]), torch.tensor([4.00001]))
    assert normalizer.normalize(torch.tensor([4.0])).abs() < 1e-4
    torch.testing.assert_close(normalizer.unnormalize(torch.zeros(1)), torch.tensor([4.0]))


def test_features_get_zero_mean_and_unit_spread():
    features = np.random.default_rng(0).normal(3.0, 2.0, (500, 2, 4)).astype(np.float32)
    features[:, 1, 2] = 7.0
    standardizer = FeatureStandardizer(2, 4)
    standardizer.fit(torch.from_numpy(features.mean(0)), torch.from_numpy(features.std(0)))
    scaled = standardizer(torch.from_numpy(features)).numpy()
    spread = np.ones((2, 4))
    spread[1, 2] = 0.0
    np.testing.assert_allclose(scaled.mean(0), np.zeros((2, 4)), atol=1e-5)
    np.testing.assert_allclose(scaled.std(0), spread, atol=1e-5)
