"""Charts: where a point is drawn, what a long line keeps, and which axes hold the values."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.rollout.report.chart import (
    Line,
    chart,
    fitting_scale,
    linear_scale,
    number_text,
    step_scale,
    tick_texts,
)
from pipeline.rollout.report.contents import Point
from pipeline.rollout.report.page import environment


def drawn(lines, name="loss", last_step=100):
    """Parse a chart as XML, which an unescaped name would break."""
    figure = chart(name, lines, last_step)
    return ElementTree.fromstring(environment().get_template("chart.html").render(chart=figure))


def coordinates(figure, index=0):
    course = figure.findall(".//polyline")[index].get("points")
    return np.array([[float(x) for x in pair.split(",")] for pair in course.split()])


def test_points_are_drawn_where_the_axes_place_them():
    figure = drawn([Line("a", "s0", [Point(0, 0.0), Point(50, 1.0), Point(100, 0.5)])])
    left, right, last = json.loads(figure.get("data-frame"))
    at = coordinates(figure)
    np.testing.assert_allclose(at[:, 0], [left, (left + right) / 2, right], atol=0.06)
    assert last == 100
    bottom, top = at[0, 1], at[1, 1]
    assert top < bottom  # SVG's vertical axis points downwards
    np.testing.assert_allclose(at[2, 1], (bottom + top) / 2, atol=0.06)


def test_ticks_are_at_their_values():
    figure = drawn([Line("a", "s0", [Point(0, 0.0), Point(100, 1.0)])])
    texts = {t.text: float(t.get("y")) for t in figure.iter("text") if t.get("class") == "up"}
    assert texts["0"] == pytest.approx(coordinates(figure)[0, 1])
    assert texts["1"] == pytest.approx(coordinates(figure)[1, 1])


def test_runs_share_the_axes_and_have_their_names_and_last_values():
    lines = [
        Line("first", "s0", [Point(0, 1.0), Point(100, 0.25)]),
        Line("<second>", "s1 dashed", [Point(0, 1.0)]),
    ]
    figure = drawn(lines)
    assert (coordinates(figure, 0)[0] == coordinates(figure, 1)[0]).all()
    items = figure.findall(".//li")
    assert [item.get("class") for item in items] == ["s0", "s1 dashed"]
    texts = [" ".join("".join(item.itertext()).split()) for item in items]
    assert texts == ["first 0.25 step 100", "<second> 1 step 0"]


def test_a_share_has_its_interval_and_an_axis_from_0_to_100_percent():
    line = Line("a", "s0", [Point(50, 0.8, trials=5), Point(100, 1.0)])
    figure = drawn([line], "rollout_success")
    whiskers = [path.get("d") for path in figure.iter("path")]
    assert len(whiskers) == 1
    _, bottom, top = map(float, re.findall(r"[\d.]+", whiskers[0]))
    texts = {t.text: float(t.get("y")) for t in figure.iter("text") if t.get("class") == "up"}
    height = texts["0 %"] - texts["100 %"]
    shares = [(texts["0 %"] - y) / height for y in (bottom, top)]
    assert shares == pytest.approx([0.3755, 0.9638], abs=1e-3)  # Wilson for 4 of 5


def test_a_long_line_keeps_its_extremes():
    numbers = np.random.default_rng(0).normal(size=5_000)
    points = [Point(10 * step, float(value)) for step, value in enumerate(numbers)]
    line = Line("a", "s0", points)
    found = line.spans
    assert len(found) <= 120
    assert min(span.low for span in found) == numbers.min()
    assert max(span.high for span in found) == numbers.max()
    assert all(span.low <= span.middle <= span.high for span in found)
    assert found[0].middle == pytest.approx(np.median(numbers[: len(points) // len(found) + 1]))
    figure = drawn([line], last_step=50_000)
    assert len(coordinates(figure)) == len(found)
    assert len(figure.findall(".//polygon")) == 1


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
