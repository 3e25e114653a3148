"""Figures of a rollout, against published values and scipy."""

import pytest
from scipy.stats import binomtest

from pipeline.rollout.play.result import Disagreement, Latency, wilson_interval


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (1, 5), (18, 20), (20, 20), (37, 50)])
def test_interval_equals_scipys(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high))


def test_latency_gives_percentiles():
    latency = Latency.of([0.001 * i for i in range(101)])
    assert (latency.p50, latency.p95, latency.p99) == pytest.approx((0.05, 0.095, 0.099))


def test_disagreement_gives_its_median_or_is_absent():
    found = Disagreement.of([0.01 * i for i in range(101)])
    assert (found.median, found.p95) == pytest.approx((0.5, 0.95))
    assert Disagreement.of([]) is None
