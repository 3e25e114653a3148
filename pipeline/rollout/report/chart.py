"""The curves of training: one line chart per figure, all runs in it.

`templates/chart.html` draws it as inline SVG. Its colors come from the page's style sheet by class;
the page's script shows the values under the pointer, which it reads from `Chart.series`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar, Final, NamedTuple

from pipeline.rollout.report.contents import SUCCESS_RATE, VALIDATION_ERROR, Point, RunContents

MAX_POINTS: Final = 240  # a line of more points is drawn as spans
NUM_SPANS: Final = 120
LOG_SPAN: Final = 20.0  # largest over smallest value from which a logarithmic axis reads better
MAX_LOG_TICKS: Final = 7  # before only powers of ten are marked
SLACK: Final = 0.7  # share of the desired distance between ticks that a rounder one may have
ROUNDING: Final = 1e-9  # share of a tick's distance that floating point may miss it by

# Of the figures that come first: title, and what the number is, in a few words.
TITLES: Final = {
    SUCCESS_RATE: ("Success in validation rollouts", "bars: 95 % Wilson interval"),
    VALIDATION_ERROR: ("Validation error", "root mean square; actions are normalized to [-1, 1]"),
    "val_loss": ("Validation loss", "on episodes kept out of training"),
    "loss": ("Training loss", "as it is minimized, weights included"),
    "raw_mse": ("Raw error", "mean square, before any weight"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "learning_rate": ("Learning rate", ""),
    "steps_per_s": ("Speed", "optimizer steps per second"),
}
NEVER_LOG: Final = {"learning_rate", "steps_per_s"}  # their axes are linear


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`."""

    low: float
    high: float
    is_log: bool
    ticks: tuple[float, ...]

    def position(self, value: int | float) -> float:
        """Return where a value is: 0 at `low`, 1 at `high`, held in between."""
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))


class Span(NamedTuple):
    """Neighboring points as one: their middle step, and the lowest, median and highest value."""

    step: int | float
    low: float
    middle: float
    high: float
    trials: int | None
    """Episodes behind a success rate; None for every other figure and where points are grouped."""


@dataclass(frozen=True)
class Line:
    """One run's figure."""

    label: str
    color: str
    """Class of its color in the style sheet."""
    points: Sequence[Point]

    @property
    def spans(self) -> list[Span]:
        """What is drawn: each point by itself, or at most `NUM_SPANS` groups of neighbors."""
        size = -(-len(self.points) // NUM_SPANS) if len(self.points) > MAX_POINTS else 1
        found = []
        for start in range(0, len(self.points), size):
            group = self.points[start : start + size]
            values = [point.value for point in group]
            step = (group[0].step + group[-1].step) / 2
            trials = group[0].trials if size == 1 else None
            found.append(Span(step, min(values), median(values), max(values), trials))
        return found


@dataclass(frozen=True)
class Chart:
    """One figure of one or several runs; coordinates are in SVG units, y points downwards."""

    title: str
    note: str
    is_share: bool
    """A share of episodes: the axis goes from 0 to 1, every point has its Wilson interval."""
    lines: Sequence[Line]
    across: Scale
    """Of the horizontal axis, in optimizer steps."""
    upward: Scale

    width: ClassVar = 360  # of the picture
    height: ClassVar = 190
    left: ClassVar = 50  # where the axes are
    right: ClassVar = 346
    top: ClassVar = 10
    bottom: ClassVar = 166

    def x(self, step: int | float) -> float:
        """Return where an optimizer step is."""
        return round(self.left + self.across.position(step) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Return where a value is."""
        return round(self.bottom - self.upward.position(value) * (self.bottom - self.top), 1)

    def text(self, value: float, trials: int | None) -> str:
        """Return a value to read."""
        if not self.is_share:
            return number_text(value)
        return percent(value) + (f" of {trials}" if trials else "")

    @property
    def upward_texts(self) -> list[str]:
        """The numbers next to the vertical axis."""
        return [*map(percent, self.upward.ticks)] if self.is_share else tick_texts(self.upward)

    @property
    def series(self) -> list[dict[str, list[int] | list[str]]]:
        """The steps that the pointer can select on each line, and the values there as text."""
        return [
            {
                "steps": [round(span.step) for span in line.spans],
                "texts": [self.text(span.middle, span.trials) for span in line.spans],
            }
            for line in self.lines
        ]


def curves(runs: Sequence[RunContents]) -> dict[str, object]:
    """Lay out every figure that some run logged: known ones first, then by name."""
    logged = {name for run in runs for name in run.log.figures}
    names = [name for name in TITLES if name in logged] + sorted(logged - TITLES.keys())
    all_points = [points for run in runs for points in run.log.figures.values()]
    last_step = max((points[-1].step for points in all_points), default=0)
    charts = []
    for name in names:
        found = [(run, run.log.figures[name]) for run in runs if name in run.log.figures]
        lines = [Line(run.label, run.color, points) for run, points in found]
        charts.append(chart(name, lines, last_step))
    return {
        "charts": charts,
        "max_points": MAX_POINTS if any(len(p) > MAX_POINTS for p in all_points) else None,
    }


def chart(name: str, lines: Sequence[Line], last_step: int) -> Chart:
    """Choose the scales of the figure `name` of log.jsonl; each line has one point or more.

    The horizontal axis ends at `last_step`, in optimizer steps.
    """
    title, note = TITLES.get(name) or (name.replace("_", " ").capitalize(), "")
    if name == SUCCESS_RATE:
        upward = linear_scale(0.0, 1.0)
    else:
        values = [point.value for line in lines for point in line.points]
        upward = fitting_scale(values, may_be_log=name not in NEVER_LOG)
    return Chart(title, note, name == SUCCESS_RATE, lines, step_scale(last_step), upward)


def fitting_scale(values: Sequence[float], *, may_be_log: bool) -> Scale:
    """Return an axis that holds all values, at least one; logarithmic where they span decades."""
    low, high = min(values), max(values)
    if may_be_log and low > 0 and high / low >= LOG_SPAN:
        return _log_scale(low, high)
    return linear_scale(low, high)


def linear_scale(low: float, high: float) -> Scale:
    """Return a linear axis whose ends are ticks, about four round steps long."""
    if low == high:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    if 0 < low < 0.3 * high:
        low = 0.0  # so near that leaving zero out would only mislead
    step = _round_step((high - low) / 4)
    first = math.floor(low / step + ROUNDING)
    last = math.ceil(high / step - ROUNDING)
    ticks = tuple(step * index for index in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], is_log=False, ticks=ticks)


def step_scale(last: int) -> Scale:
    """Return the axis of optimizer steps from 0 to `last`; its end need not be a tick."""
    end = float(max(1, last))
    step = max(1.0, _round_step(end / 5))
    ticks = tuple(step * index for index in range(int(end / step + ROUNDING) + 1))
    return Scale(0.0, end, is_log=False, ticks=ticks)


def _round_step(length: float) -> float:
    """Return 1, 2 or 5 times a power of ten, near `length`."""
    power = 10.0 ** math.floor(math.log10(length))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= SLACK * length)


def _log_scale(low: float, high: float) -> Scale:
    """Return a logarithmic axis that ends at 1, 2 or 5 times a power of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    rounds = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    first = max(value for value in rounds if value <= low * (1 + ROUNDING))
    last = min(value for value in rounds if value >= high * (1 - ROUNDING))
    between = [value for value in rounds if first <= value <= last]
    if len(between) > MAX_LOG_TICKS:
        every = math.ceil(len(powers) / MAX_LOG_TICKS)
        between = [10.0**power for power in powers[::every] if first <= 10.0**power <= last]
    return Scale(first, last, is_log=True, ticks=tuple(between))


def tick_texts(scale: Scale) -> list[str]:
    """Return the numbers next to an axis, with as many digits as distinguish its ticks."""
    return [_signed(f"{tick:,.12g}") for tick in scale.ticks]


def number_text(value: float) -> str:
    """Return a figure to read: four significant digits."""
    return _signed(f"{value:,.0f}" if 1e3 <= abs(value) < 1e5 else f"{value:.4g}")


def percent(share: float) -> str:
    """Return a share in [0, 1] to read."""
    return f"{100 * share:.0f} %"


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
