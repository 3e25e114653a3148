"""The paired tests, against scipy, published examples and all outcomes of a coin."""

from itertools import product

import pytest

from pipeline.rollout.report.comparison import PairedOutcome, holm


@pytest.mark.parametrize(
    ("first_only", "second_only"), [(0, 1), (5, 0), (2, 12), (7, 1), (6, 6), (30, 14), (900, 1100)]
)
def test_p_is_the_binomial_test_of_the_discordant_pairs(first_only, second_only):
    from scipy.stats import binomtest  # slow, and not all processes of the suite need it

    expected = binomtest(first_only, first_only + second_only, 0.5).pvalue
    outcome = PairedOutcome(9, first_only, second_only, 4)
    assert outcome.p_value == pytest.approx(expected, rel=1e-12)


def test_p_is_the_share_of_coin_tosses_at_least_as_uneven():
    tosses = [sum(toss) for toss in product((0, 1), repeat=9)]
    uneven = sum(min(heads, 9 - heads) <= 2 for heads in tosses) / len(tosses)
    assert PairedOutcome(0, 7, 2, 0).p_value == pytest.approx(uneven)


def test_policies_that_agree_on_every_seed_are_not_told_apart():
    assert PairedOutcome(18, 0, 0, 2).p_value == 1.0


@pytest.mark.parametrize(
    ("counts", "low", "high"), [((36, 12, 2, 0), 0.0569, 0.3404), ((18, 12, 2, 18), 0.0562, 0.3290)]
)
def test_interval_is_the_published_one(counts, low, high):
    """R. G. Newcombe, Statistics in Medicine 17 (1998), 2635-2650, table II, method 10."""
    assert PairedOutcome(*counts).interval == pytest.approx((low, high), abs=5e-5)


def test_interval_without_a_difference_is_symmetric_and_swapping_turns_it_around():
    low, high = PairedOutcome(20, 0, 0, 0).interval
    assert low == pytest.approx(-high)
    assert 0 < high < 0.2
    low, high = PairedOutcome(11, 6, 1, 2).interval
    assert PairedOutcome(11, 1, 6, 2).interval == pytest.approx((-high, -low))


def test_only_common_seeds_count():
    first = {1: True, 2: True, 3: False, 4: False, 5: True}
    second = {2: True, 3: False, 4: True, 5: False, 6: True}
    assert PairedOutcome.of(first, second) == PairedOutcome(1, 1, 1, 1)


def test_difference_is_that_of_the_rates():
    outcome = PairedOutcome(6, 12, 1, 1)
    assert outcome.trials == 20
    assert outcome.difference == pytest.approx(18 / 20 - 7 / 20)


def test_several_p_values_are_adjusted_in_order():
    """By hand: 3 * 0.01; then 2 * 0.02; then the largest so far instead of 0.03."""
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
