"""Scaling, against numpy."""

import numpy as np
import pytest
import torch

from pipeline.training.data.windows import distribution
from policy.network.normalizer import FeatureStandardizer, Normalizer, Scaling
from tests.policy.scales import between

SCALINGS: tuple[Scaling, ...] = ("range", "quantiles", "deviation")


def fitted(scaling: Scaling, values: torch.Tensor) -> Normalizer:
    """A normalizer of these values, [n, d]."""
    normalizer = Normalizer(values.shape[1], scaling)
    normalizer.fit(distribution(values, torch.arange(len(values))))
    return normalizer


def test_range_maps_to_minus_one_and_one_and_back():
    normalizer = Normalizer(3)
    low, high = torch.tensor([-2.0, 0.0, 10.0]), torch.tensor([2.0, 0.5, 30.0])
    normalizer.fit(between(low, high))
    torch.testing.assert_close(normalizer.normalize(low), -torch.ones(3))
    torch.testing.assert_close(normalizer.normalize(high), torch.ones(3))
    values = torch.tensor([0.3, 0.2, 17.0])
    torch.testing.assert_close(normalizer.unnormalize(normalizer.normalize(values)), values)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("constant", [0.1, -4096.7, 0.0, 1e-30])
def test_a_constant_dimension_enters_as_zero_and_comes_back_bit_for_bit(scaling, constant):
    values = torch.full((121, 1), constant)
    normalizer = fitted(scaling, values)
    live = torch.tensor([[constant], [constant + 0.5], [-1e30], [1e30]])
    predicted = torch.tensor([[0.0], [-0.7], [1e30], [-torch.inf]])
    assert (normalizer.normalize(live) == 0).all()
    assert torch.equal(normalizer.unnormalize(predicted), values[:4])


def test_noise_of_a_sensor_is_no_signal():
    normalizer = fitted("range", torch.tensor([[4.0], [4.00001]]))
    assert normalizer.normalize(torch.tensor([4.3])) == 0
    torch.testing.assert_close(normalizer.unnormalize(torch.ones(1)), torch.tensor([4.000005]))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_scaling_equals_its_definition(scaling):
    values = np.random.default_rng(0).gamma(2.0, 3.0, (400, 3)).astype(np.float32)
    low, high = {
        "range": (values.min(0), values.max(0)),
        "quantiles": (
            np.percentile(values, 1, axis=0, method="lower"),
            np.percentile(values, 99, axis=0, method="higher"),
        ),
        "deviation": (values.mean(0) - values.std(0), values.mean(0) + values.std(0)),
    }[scaling]
    limit = 5.0 if scaling == "deviation" else 1.5
    expected = np.clip(2 * (values - low) / (high - low) - 1, -limit, limit)
    normalizer = fitted(scaling, torch.from_numpy(values))
    found = normalizer.normalize(torch.from_numpy(values))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    inside = np.abs(expected) < limit
    np.testing.assert_allclose(normalizer.unnormalize(found)[inside], values[inside], atol=1e-4)


def test_quantiles_keep_their_scale_where_one_reading_is_wild():
    """One value of 4096 among 120 readings of a joint within 1.5 rad."""
    values = torch.from_numpy(np.random.default_rng(1).uniform(-1.5, 1.5, (120, 1))).float()
    tame = fitted("quantiles", values)
    values[60] = 4096.0
    wild, ranged = fitted("quantiles", values), fitted("range", values)
    torch.testing.assert_close(wild.half_range, tame.half_range, rtol=0.02, atol=0)
    assert ranged.half_range > 2000  # the scale that the field's fault came from
    assert wild.normalize(values).abs().max() == 1.5
    answers = wild.unnormalize(torch.tensor([[-40.0], [1.0], [700.0]]))
    assert answers.abs().max() < 2.4  # 1.5 rad and a quarter of their range at most


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(
    ("closed", "steps"), [(8, 1000), (9, 900), (10, 1000), (11, 1050), (20, 1000), (37, 1000)]
)
def test_a_switch_that_is_seldom_closed_stays_one(scaling, closed, steps):
    """A quantile may be neither of its values, or its range nothing, and 5 deviations short."""
    values = torch.zeros(steps, 1)
    values[500 : 500 + closed] = 1.0
    normalizer = fitted(scaling, values)
    assert len(normalizer.normalize(values).unique()) == 2
    torch.testing.assert_close(
        normalizer.unnormalize(normalizer.normalize(values)), values, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("scaling", SCALINGS)
def test_what_is_far_outside_the_scale_is_clipped_on_both_ways(scaling):
    normalizer = Normalizer(1, scaling)
    normalizer.fit(between(torch.tensor([10.0]), torch.tensor([14.0])))
    limit = 5.0 if scaling == "deviation" else 1.5
    assert normalizer.normalize(torch.tensor([1e6, -1e6])[:, None])[:, 0].tolist() == [
        limit,
        -limit,
    ]
    answers = normalizer.unnormalize(torch.tensor([1e6, -1e6])[:, None])[:, 0]
    assert answers.tolist() == [12 + 2 * limit, 12 - 2 * limit]


def test_features_get_zero_mean_and_unit_spread():
    features = np.random.default_rng(0).normal(3.0, 2.0, (500, 2, 4)).astype(np.float32)
    features[:, 1, 2] = 7.0
    standardizer = FeatureStandardizer(2, (4,))
    standardizer.fit(torch.from_numpy(features.mean(0)), torch.from_numpy(features.std(0)))
    scaled = standardizer(torch.from_numpy(features)).numpy()
    spread = np.ones((2, 4))
    spread[1, 2] = 0.0
    np.testing.assert_allclose(scaled.mean(0), np.zeros((2, 4)), atol=1e-5)
    np.testing.assert_allclose(scaled.std(0), spread, atol=1e-5)


def test_a_feature_that_was_constant_is_zero_whatever_it_is_live():
    standardizer = FeatureStandardizer(1, (2,))
    standardizer.fit(torch.tensor([[7.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    live = torch.tensor([[7.0, 1.0], [-65504.0, 2.0], [65504.0, 4.0]])[None, :, None]
    assert standardizer(live)[0, :, 0].tolist() == [[0.0, 0.5], [0.0, 1.0], [0.0, 2.0]]
