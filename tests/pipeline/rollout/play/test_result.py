"""Figures of a rollout, against published values and scipy."""

from itertools import product

import numpy as np
import pytest

from pipeline.rollout.play.result import (
    EpisodeResult,
    Latency,
    mean_interval,
    success_fields,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (1, 5), (18, 20), (20, 20), (37, 50)])
def test_interval_equals_scipys(successes, trials):
    from scipy.stats import binomtest  # slow, and not all processes of the suite need it

    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high))


def test_the_interval_of_a_mean_over_one_environment_is_wilsons():
    assert mean_interval([(7, 9)]) == pytest.approx(wilson_interval(7, 9))


def test_the_interval_of_a_mean_of_many_episodes_is_the_stratified_bootstraps():
    """Episodes are drawn anew within each environment, of 4,000, 2,000 and 1,000 episodes."""
    counts = [(3600, 4000), (1000, 2000), (200, 1000)]
    numbers = np.random.default_rng(0)
    drawn = [
        numbers.binomial(trials, solved / trials, 400_000) / trials for solved, trials in counts
    ]
    expected = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    # Of a width of 0.023; Wilson's intervals lie toward one half by 0.0003 on average.
    assert mean_interval(counts) == pytest.approx(tuple(expected), abs=5e-4)


def test_the_interval_of_a_mean_holds_it_as_often_as_it_says():
    """The probabilities of all outcomes of 10 episodes in each of three environments, added up."""
    from scipy.stats import binom  # slow, and not all processes of the suite need it

    outcomes = np.array(list(product(range(11), repeat=3)))
    intervals = [
        mean_interval([(solved, 10) for solved in outcome]) for outcome in outcomes.tolist()
    ]
    low, high = np.array(intervals).T
    covered = []
    for rates in np.random.default_rng(0).uniform(0, 1, (200, 3)):
        holds = (low <= rates.mean()) & (rates.mean() <= high)
        covered.append(binom.pmf(outcomes, 10, rates).prod(axis=1)[holds].sum())
    assert 0.945 < np.mean(covered) < 0.965
    assert min(covered) > 0.9  # that of Wilson's interval of 10 episodes varies as much


def test_a_mean_counts_environments_equally_and_suites_are_their_names_without_the_last_part():
    solved = {"a/x/0": [True, True], "a/y/0": [True, False, False, False], "a/x/1": [False]}
    episodes = [
        EpisodeResult(
            task=task, seed=seed, success=success, steps=1, reward=0, max_reward=0, decisions=1
        )
        for task, outcomes in solved.items()
        for seed, success in enumerate(outcomes)
    ]
    fields = success_fields(episodes)
    assert fields["success_rate"] == pytest.approx((1 + 0.25 + 0) / 3)
    assert [(rate.name, rate.solved, rate.episodes) for rate in fields["tasks"]] == [
        ("a/x/0", 2, 2),
        ("a/y/0", 1, 4),
        ("a/x/1", 0, 1),
    ]
    suites = {rate.name: rate for rate in fields["suites"]}
    assert suites["a/x"].success_rate == 0.5  # and not 2 of 3
    assert suites["a/y"].success_interval == pytest.approx(wilson_interval(1, 4))


def test_latency_gives_percentiles():
    latency = Latency.of([0.001 * i for i in range(101)])
    assert (latency.p50, latency.p95, latency.p99) == pytest.approx((0.05, 0.095, 0.099))
