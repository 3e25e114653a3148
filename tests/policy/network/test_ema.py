"""The moving average, against its recursion in float64."""

import pytest
import torch
from torch import nn

from policy.network.ema import WeightAverage, ema_decay
from policy.network.normalizer import FeatureStandardizer


def test_average_follows_the_recursion():
    module = nn.Linear(2, 2)
    average = WeightAverage(module)
    expected = module.weight.detach().double().clone()
    for step in range(20):
        with torch.no_grad():
            module.weight.add_(torch.randn(2, 2))
        average.update(module, step)
        decay = min(0.9999, 1 - (1 + step) ** -0.75)
        expected = decay * expected + (1 - decay) * module.weight.detach().double()
    torch.testing.assert_close(average.averaged["weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_a_mirror_holds_the_averaged_weights_at_every_update():
    module = nn.Linear(2, 2)
    average = WeightAverage(module)
    mirror = average.mirror(module)
    for step in range(5):
        with torch.no_grad():
            module.weight.add_(torch.randn(2, 2))
        average.update(module, step)
        assert torch.equal(mirror.weight, average.averaged["weight"])
        assert torch.equal(mirror.weight, module.weight) == (step == 0)
    assert not any(parameter.requires_grad for parameter in mirror.parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_decay_warms_up_and_saturates():
    assert ema_decay(0) == 0.0
    assert ema_decay(9_999) == pytest.approx(0.999)
    assert ema_decay(10**9) == 0.9999


def test_the_average_maps_a_constant_feature_to_zero_as_the_weights_do():
    standardizer = FeatureStandardizer(1, (3,))
    standardizer.fit(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.0, 2.0]]))
    average = WeightAverage(standardizer)
    for step in range(5):
        average.update(standardizer, step)
    features = torch.tensor([[[[2.0, 9.0, 5.0]]]])
    expected = torch.tensor([[[[2.0, 0.0, 1.0]]]])
    assert torch.equal(standardizer(features), expected)
    assert torch.equal(average.mirror(standardizer)(features), expected)
