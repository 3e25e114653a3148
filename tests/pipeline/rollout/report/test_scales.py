"""Axes: they hold their values, their ticks are round, their numbers tell ticks apart."""

import numpy as np
import pytest

from pipeline.rollout.report.scales import (
    fitting_scale,
    linear_scale,
    number_text,
    step_scale,
    tick_texts,
)


@pytest.mark.parametrize("seed", range(40))
def test_every_axis_holds_its_values_between_few_round_ticks(seed):
    numbers = np.random.default_rng(seed)
    values = numbers.normal(size=5) * 10.0 ** numbers.uniform(-8, 8) + numbers.choice([0, 1, -50])
    if seed % 2:
        values = np.exp(10 * values / np.abs(values).max())
    scale = fitting_scale(list(values), may_be_log=True)
    margin = 1e-6 * (scale.high - scale.low)
    assert scale.low - margin <= values.min() <= values.max() <= scale.high + margin
    assert 2 <= len(scale.ticks) <= 9
    assert len(set(tick_texts(scale))) == len(scale.ticks)
    assert all(0 <= scale.position(value) <= 1 for value in values)


def test_values_over_decades_get_a_logarithmic_axis_and_others_not():
    assert fitting_scale([0.01, 1.0], may_be_log=True).is_log
    assert not fitting_scale([0.01, 1.0], may_be_log=False).is_log
    assert not fitting_scale([0.5, 1.0], may_be_log=True).is_log
    assert not fitting_scale([0.0, 1.0], may_be_log=True).is_log


def test_a_logarithmic_axis_places_by_ratio():
    scale = fitting_scale([0.01, 1.0], may_be_log=True)
    assert [scale.position(value) for value in (0.01, 0.1, 1.0)] == pytest.approx([0, 0.5, 1])


def test_one_value_alone_has_an_axis():
    for value in (0.0, 3.0, -2.0):
        scale = linear_scale(value, value)
        assert scale.low < value < scale.high or value == scale.low == 0


def test_steps_start_at_zero_and_end_where_training_ends():
    scale = step_scale(900)
    assert (scale.low, scale.high) == (0, 900)
    assert scale.ticks == (0, 200, 400, 600, 800)
    assert step_scale(1).ticks == (0, 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.08912, "0.08912"),
        (12.3456, "12.35"),
        (1234.6, "1,235"),
        (1e-3, "0.001"),
        (2.5e-6, "2.5e\N{MINUS SIGN}06"),
        (1.5e7, "1.5e+07"),
        (-0.25, "\N{MINUS SIGN}0.25"),
        (100.0, "100"),
    ],
)
def test_numbers_read_well(value, text):
    assert number_text(value) == text
