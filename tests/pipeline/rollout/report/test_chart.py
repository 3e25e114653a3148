"""Charts: where a point is drawn, and what a long line keeps."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.rollout.report.chart import ChartStyle, Line, chart, spans
from pipeline.rollout.report.page import environment
from pipeline.rollout.report.training_log import Point


def drawn(lines, style=None, last_step=100):
    """Parse a chart as XML, which an unescaped name would break."""
    figure = chart(lines, style or ChartStyle("Loss"), last_step)
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
    style = ChartStyle("Success", is_share=True)
    figure = drawn([Line("a", "s0", [Point(50, 0.8, trials=5), Point(100, 1.0)])], style)
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
    found = spans(points)
    assert len(found) <= 120
    assert min(span.low for span in found) == numbers.min()
    assert max(span.high for span in found) == numbers.max()
    assert all(span.low <= span.middle <= span.high for span in found)
    assert found[0].middle == pytest.approx(np.median(numbers[: len(points) // len(found) + 1]))
    figure = drawn([Line("a", "s0", points)], last_step=50_000)
    assert len(coordinates(figure)) == len(found)
    assert len(figure.findall(".//polygon")) == 1
