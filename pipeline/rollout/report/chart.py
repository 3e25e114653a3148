"""One line chart of several runs: where its points, axes and labels are.

`templates/chart.html` draws it as inline SVG. Its colors come from the page's style sheet by class;
the page's script reads the values under the pointer from
`Curve.series`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from pipeline.rollout.play.result import wilson_interval
from pipeline.rollout.report.scales import (
    Scale,
    fitting_scale,
    linear_scale,
    number_text,
    percent,
    step_scale,
    tick_texts,
)
from pipeline.rollout.report.training_log import Point

DIGIT_WIDTH: Final = 6.4  # of the axes' numbers
MAX_POINTS: Final = 240  # a line of more points is drawn as spans
NUM_SPANS: Final = 120
MAX_MARKED: Final = 40  # points that are still drawn as dots


@dataclass(frozen=True)
class Line:
    """One run's figure."""

    label: str
    color: str
    """Class of its color in the style sheet."""
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
    """Neighboring points as one: their middle step, and the lowest, median and highest value."""

    step: float
    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Frame:
    """Size of the picture and edges of its axes, in SVG units; y points downwards."""

    width: int = 360
    height: int = 190
    left: int = 50
    right: int = 346
    top: int = 10
    bottom: int = 166

    def x(self, across: Scale, step: int | float) -> float:
        """Return where an optimizer step is."""
        return round(self.left + across.place(step) * (self.right - self.left), 1)

    def y(self, upward: Scale, value: float) -> float:
        """Return where a value is."""
        return round(self.bottom - upward.place(value) * (self.bottom - self.top), 1)


FRAME: Final = Frame()


@dataclass(frozen=True)
class Tick:
    """A number on an axis."""

    at: float
    """Its x or y in SVG units."""
    text: str
    overhangs: bool = False
    """Whether its text, centered there, would leave the picture on the right."""


@dataclass(frozen=True)
class Curve:
    """One run's line, in SVG units."""

    label: str
    color: str
    course: str
    """Corners of the line, as `x,y x,y`."""
    band: str
    """Corners of the area between lowest and highest values; empty where each point is drawn."""
    whiskers: list[str]
    """Paths of the points' Wilson intervals."""
    dots: list[tuple[float, float]]
    series: dict[str, list[int] | list[str]]
    """`steps` that the pointer can select, and the values there as `texts`."""
    last_step: int
    last_text: str


@dataclass(frozen=True)
class Chart:
    """One figure, ready to be drawn."""

    title: str
    note: str
    across: list[Tick]
    upward: list[Tick]
    curves: list[Curve]
    last_step: float
    """Where the horizontal axis ends."""
    frame: Frame = FRAME


def chart(lines: Sequence[Line], style: ChartStyle, last_step: int) -> Chart:
    """Lay out one figure of one or several runs.

    Args:
        lines: one or more, each with one point or more.
        style: how it is drawn.
        last_step: where the horizontal axis ends, in optimizer steps.
    """
    across = step_scale(last_step)
    values = [point.value for line in lines for point in line.points]
    if style.is_share:
        upward = linear_scale(0.0, 1.0)
        texts = [percent(tick) for tick in upward.ticks]
    else:
        upward = fitting_scale(values, may_be_log=style.may_be_log)
        texts = tick_texts(upward)
    return Chart(
        title=style.title,
        note="; ".join(filter(None, [style.note, "logarithmic axis" if upward.is_log else ""])),
        across=[_step_tick(FRAME.x(across, tick), f"{tick:,.0f}") for tick in across.ticks],
        upward=[
            Tick(FRAME.y(upward, tick), text)
            for tick, text in zip(upward.ticks, texts, strict=True)
        ],
        curves=[_curve(line, across, upward, is_share=style.is_share) for line in lines],
        last_step=across.high,
    )


def spans(points: Sequence[Point], count: int = NUM_SPANS) -> list[Span]:
    """Group points of rising steps into at most `count` spans of equally many neighbors."""
    size = -(-len(points) // count)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    found = []
    for group in groups:
        values = [point.value for point in group]
        step = (group[0].step + group[-1].step) / 2
        found.append(Span(step, min(values), median(values), max(values)))
    return found


def _curve(line: Line, across: Scale, upward: Scale, *, is_share: bool) -> Curve:
    def corners(places: Sequence[tuple[int | float, float]]) -> str:
        return " ".join(f"{FRAME.x(across, x)},{FRAME.y(upward, y)}" for x, y in places)

    points, band = line.points, ""
    if len(points) > MAX_POINTS:
        grouped = spans(points)
        edge = [(span.step, span.high) for span in grouped]
        edge += [(span.step, span.low) for span in reversed(grouped)]
        band = corners(edge)
        course = [(span.step, span.middle) for span in grouped]
        points = [Point(round(span.step), span.middle) for span in grouped]
    else:
        course = [(point.step, point.value) for point in points]
    is_marked = len(line.points) <= MAX_MARKED
    return Curve(
        label=line.label,
        color=line.color,
        course=corners(course),
        band=band,
        whiskers=[
            _whisker(point, across, upward) for point in line.points if is_share and point.trials
        ],
        dots=[(FRAME.x(across, x), FRAME.y(upward, y)) for x, y in course] if is_marked else [],
        series={
            "steps": [point.step for point in points],
            "texts": [_value_text(point, is_share=is_share) for point in points],
        },
        last_step=line.points[-1].step,
        last_text=_value_text(line.points[-1], is_share=is_share),
    )


def _whisker(point: Point, across: Scale, upward: Scale) -> str:
    trials = point.trials or 1
    low, high = wilson_interval(round(point.value * trials), trials)
    return f"M{FRAME.x(across, point.step)} {FRAME.y(upward, low)}V{FRAME.y(upward, high)}"


def _step_tick(x: float, text: str) -> Tick:
    return Tick(x, text, overhangs=x + len(text) * DIGIT_WIDTH / 2 > FRAME.width)


def _value_text(point: Point, *, is_share: bool) -> str:
    if not is_share:
        return number_text(point.value)
    return percent(point.value) + (f" of {point.trials}" if point.trials else "")
