"""The benchmark's energy distance against the sum over all pairs."""

import pytest
import torch

from tests.bench.toy_actions import energy_distance, ring, two_modes
from tests.policy.objectives.objective_contract import generator


@pytest.mark.parametrize("count", [400, 1_000])
def test_the_energy_distance_is_that_of_all_pairs(count):
    first, second = ring(count, generator()), two_modes(1_000, generator(1))
    n, m = len(first), len(second)
    between = torch.cdist(first.double(), second.double()).sum() / (n * m)
    within = [
        torch.cdist(sample.double(), sample.double()).sum() / (k * (k - 1))
        for sample, k in ((first, n), (second, m))
    ]
    by_pairs = float(2 * between - sum(within))
    assert energy_distance(first, second) == pytest.approx(by_pairs, rel=3e-4)


def test_two_samples_of_one_distribution_are_at_no_distance():
    """Unbiased: the estimate is as often below 0 as above."""
    distances = [
        energy_distance(ring(500, generator(2 * seed)), ring(500, generator(2 * seed + 1)))
        for seed in range(20)
    ]
    assert abs(sum(distances)) / 20 < 2e-3
    assert min(distances) < 0 < max(distances)
