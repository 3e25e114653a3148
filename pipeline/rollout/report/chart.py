"""The curves of training: one line chart per figure, all runs in it.

`templates/chart.html` draws it as inline SVG. Its colors come from the page's style sheet by class;
the page's script shows the values under the pointer, which it reads from `Chart.series`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar, Final

from pipeline.rollout.report.contents import VALIDATION_ERROR, RunContents
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

MAX_POINTS: Final = 240  # a line of more points is drawn as spans
NUM_SPANS: Final = 120


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

    step: int | float
    low: float
    middle: float
    high: float
    trials: int | None = None
    """Episodes behind a success rate; None for every other figure and where points are grouped."""


@dataclass(frozen=True)
class Line:
    """One run's figure."""

    label: str
    color: str
    """Class of its color in the style sheet."""
    points: Sequence[Point]

    @property
    def is_thinned(self) -> bool:
        """Whether it has too many points to draw each."""
        return len(self.points) > MAX_POINTS

    @property
    def spans(self) -> list[Span]:
        """What is drawn: each point by itself, or neighboring points as one."""
        if self.is_thinned:
            return spans(self.points)
        return [Span(p.step, p.value, p.value, p.value, p.trials) for p in self.points]


@dataclass(frozen=True)
class Chart:
    """One figure of one or several runs; coordinates are in SVG units, y points downwards."""

    style: ChartStyle
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
        if not self.style.is_share:
            return number_text(value)
        return percent(value) + (f" of {trials}" if trials else "")

    @property
    def upward_texts(self) -> list[str]:
        """The numbers next to the vertical axis."""
        is_share = self.style.is_share
        return list(map(percent, self.upward.ticks)) if is_share else tick_texts(self.upward)

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


def chart(lines: Sequence[Line], style: ChartStyle, last_step: int) -> Chart:
    """Choose the scales of a figure of one or more lines, each with one point or more.

    The horizontal axis ends at `last_step`, in optimizer steps.
    """
    if style.is_share:
        upward = linear_scale(0.0, 1.0)
    else:
        values = [point.value for line in lines for point in line.points]
        upward = fitting_scale(values, may_be_log=style.may_be_log)
    return Chart(style, lines, step_scale(last_step), upward)


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


STYLES: Final = {
    "rollout_success": ChartStyle(
        "Success in validation rollouts", "bars: 95 % Wilson interval", is_share=True
    ),
    VALIDATION_ERROR: ChartStyle(
        "Validation error", "root mean square; actions are normalized to [-1, 1]"
    ),
    "val_loss": ChartStyle("Validation loss", "on episodes kept out of training"),
    "loss": ChartStyle("Training loss", "as it is minimized, weights included"),
    "raw_mse": ChartStyle("Raw error", "mean square, before any weight"),
    "grad_norm": ChartStyle("Gradient norm", "before clipping"),
    "learning_rate": ChartStyle("Learning rate", may_be_log=False),
    "steps_per_s": ChartStyle("Speed", "optimizer steps per second", may_be_log=False),
}


def curves(runs: Sequence[RunContents]) -> dict[str, object]:
    """Lay out every figure that some run logged: known ones first, then by name."""
    logged = {name for run in runs for name in run.log.figures}
    names = [name for name in STYLES if name in logged] + sorted(logged - STYLES.keys())
    lines = [points for run in runs for points in run.log.figures.values()]
    last_step = max((points[-1].step for points in lines), default=0)
    return {
        "charts": [_figure(name, runs, last_step) for name in names],
        "max_points": MAX_POINTS if any(len(points) > MAX_POINTS for points in lines) else None,
    }


def _figure(name: str, runs: Sequence[RunContents], last_step: int) -> Chart:
    lines = [
        Line(run.label, run.color, run.log.figures[name]) for run in runs if name in run.log.figures
    ]
    style = STYLES.get(name) or ChartStyle(name.replace("_", " ").capitalize())
    return chart(lines, style, last_step)
