"""One line chart as inline SVG: several runs, one figure, with values under the pointer.

Knows points, scales and elements; nothing about what a figure means. Colours come from the page's
style sheet by class, `s0`, `s1` ...; the page's script reads the values from `data-series`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from pipeline.rollout.play.result import wilson_interval
from pipeline.rollout.report.markup import Markup, element
from pipeline.rollout.report.scales import (
    Scale,
    fitting_scale,
    linear_scale,
    number_text,
    step_scale,
    tick_texts,
)
from pipeline.rollout.report.tables import colour_class, swatch
from pipeline.rollout.report.training_log import Point

WIDTH: Final = 360.0  # of the picture, in its own units
HEIGHT: Final = 190.0
LEFT: Final = 50.0  # room for the numbers beside the vertical axis
RIGHT: Final = WIDTH - 14
TOP: Final = 10.0
BOTTOM: Final = HEIGHT - 24
DIGIT_WIDTH: Final = 6.4  # of the axes' numbers
MAX_POINTS: Final = 240  # a line of more points is drawn as spans
NUM_SPANS: Final = 120
MAX_MARKED: Final = 40  # points that are still drawn as dots


@dataclass(frozen=True)
class Line:
    """One run's figure."""

    label: str
    colour: int
    points: Sequence[Point]


@dataclass(frozen=True)
class ChartStyle:
    """How a figure is drawn."""

    title: str
    note: str = ""
    """What the number is, in a few words."""
    may_be_log: bool = True
    is_share: bool = False
    """A share of episodes: the axis goes from 0 to 1, every point has its Wilson interval."""


@dataclass(frozen=True)
class Span:
    """Neighbouring points as one: their middle step, and the lowest, median and highest value."""

    step: float
    low: float
    middle: float
    high: float


def chart(lines: Sequence[Line], style: ChartStyle, last_step: int) -> Markup:
    """Draw one figure of one or several runs.

    Args:
        lines: at least one, each with a point at least.
        style: how.
        last_step: where the horizontal axis ends.
    """
    across = step_scale(last_step)
    values = [point.value for line in lines for point in line.points]
    if style.is_share:
        upward = linear_scale(0.0, 1.0)
    else:
        upward = fitting_scale(values, may_be_log=style.may_be_log)
    drawn = [_line(line, across, upward, style) for line in lines]
    notes = [style.note, "logarithmic axis" if upward.is_log else ""]
    picture = element(
        "svg",
        element("title", f"{style.title} over optimiser steps"),
        _axes(across, upward, is_share=style.is_share),
        drawn,
        element("line", class_="cursor", x1=LEFT, x2=LEFT, y1=TOP, y2=BOTTOM, visibility="hidden"),
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        tabindex=0,
    )
    return element(
        "figure",
        element(
            "figcaption",
            element("b", style.title),
            element("span", "; ".join(note for note in notes if note), class_="note"),
        ),
        picture,
        _legend(lines, is_share=style.is_share),
        class_="chart",
        data_series=json.dumps([_series(line, is_share=style.is_share) for line in lines]),
        data_frame=json.dumps([LEFT, RIGHT, across.high]),
    )


def spans(points: Sequence[Point], count: int = NUM_SPANS) -> list[Span]:
    """Group points of rising steps into at most `count` spans of equally many neighbours."""
    size = -(-len(points) // count)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    found = []
    for group in groups:
        values = [point.value for point in group]
        step = (group[0].step + group[-1].step) / 2
        found.append(Span(step, min(values), median(values), max(values)))
    return found


def _line(line: Line, across: Scale, upward: Scale, style: ChartStyle) -> Markup:
    def place(step: int | float, value: float) -> str:
        return f"{_x(across, step):.1f},{_y(upward, value):.1f}"

    parts: list[Markup] = []
    if len(line.points) > MAX_POINTS:
        grouped = spans(line.points)
        edge = [place(span.step, span.high) for span in grouped]
        edge += [place(span.step, span.low) for span in reversed(grouped)]
        parts.append(element("polygon", class_="band", points=" ".join(edge)))
        course = [place(span.step, span.middle) for span in grouped]
    else:
        course = [place(point.step, point.value) for point in line.points]
    if style.is_share:
        parts += [_whisker(point, across, upward) for point in line.points if point.trials]
    parts.append(element("polyline", class_="course", points=" ".join(course)))
    if len(line.points) <= MAX_MARKED:
        for point in line.points:
            x, y = _x(across, point.step), _y(upward, point.value)
            parts.append(element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.4))
    return element("g", parts, class_=colour_class(line.colour))


def _whisker(point: Point, across: Scale, upward: Scale) -> Markup:
    trials = point.trials or 1
    low, high = wilson_interval(round(point.value * trials), trials)
    x, top, bottom = _x(across, point.step), _y(upward, high), _y(upward, low)
    path = f"M{x:.1f} {bottom:.1f}V{top:.1f}"
    return element("path", class_="whisker", d=path)


def _axes(across: Scale, upward: Scale, *, is_share: bool) -> list[Markup]:
    parts = []
    percents = [f"{100 * tick:.0f} %" for tick in upward.ticks]
    for tick, text in zip(upward.ticks, percents if is_share else tick_texts(upward), strict=True):
        y = f"{_y(upward, tick):.1f}"
        parts.append(element("line", class_="grid", x1=LEFT, x2=RIGHT, y1=y, y2=y))
        parts.append(element("text", text, class_="up", x=LEFT - 7, y=y, dy="0.32em"))
    for tick in across.ticks:
        x, text = f"{_x(across, tick):.1f}", f"{tick:,.0f}"
        overhangs = _x(across, tick) + len(text) * DIGIT_WIDTH / 2 > WIDTH
        side = "along end" if overhangs else "along"
        parts.append(element("line", class_="tick", x1=x, x2=x, y1=BOTTOM, y2=BOTTOM + 4))
        parts.append(element("text", text, class_=side, x=x, y=BOTTOM + 17))
    parts.append(element("line", class_="base", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM))
    return parts


def _legend(lines: Sequence[Line], *, is_share: bool) -> Markup:
    """Name the lines with their last values; the script puts those under the pointer there."""
    items = [
        element(
            "li",
            swatch(line.colour),
            element("span", line.label, class_="label"),
            element("output", value_text(line.points[-1], is_share=is_share)),
            element("small", f"step {line.points[-1].step:,}"),
            class_=colour_class(line.colour),
        )
        for line in lines
    ]
    return element("ul", items, class_="legend")


def _series(line: Line, *, is_share: bool) -> dict[str, list[int] | list[str]]:
    """Return what the script shows of a line: steps, heights and texts, thinned like the line."""
    points = line.points
    if len(points) > MAX_POINTS:
        points = [Point(round(span.step), span.middle) for span in spans(points)]
    return {
        "steps": [point.step for point in points],
        "texts": [value_text(point, is_share=is_share) for point in points],
    }


def value_text(point: Point, *, is_share: bool) -> str:
    """Return a point's value to read."""
    if not is_share:
        return number_text(point.value)
    of = f" of {point.trials}" if point.trials else ""
    return f"{100 * point.value:.0f} %{of}"


def _x(scale: Scale, value: int | float) -> float:
    return LEFT + scale.place(value) * (RIGHT - LEFT)


def _y(scale: Scale, value: float) -> float:
    return BOTTOM - scale.place(value) * (BOTTOM - TOP)
