"""The curves of training: one chart a figure, all runs in it.

Knows the names of the figures in `log.jsonl`; draws unknown ones under their own name.
"""

from collections.abc import Sequence
from typing import Final

from pipeline.rollout.report.chart import MAX_POINTS, ChartStyle, Line, chart
from pipeline.rollout.report.contents import RunContents
from pipeline.rollout.report.markup import Markup, element

STYLES: Final = {
    "rollout_success": ChartStyle(
        "Success in validation rollouts", "bars: 95 % Wilson interval", is_share=True
    ),
    "heldout_error": ChartStyle("Held-out action error", "root mean square; actions span 2"),
    "heldout_loss": ChartStyle("Held-out loss", "on episodes kept out of training"),
    "loss": ChartStyle("Training loss", "as it is minimised, weights included"),
    "raw_mse": ChartStyle("Raw error", "mean square, before any weight"),
    "grad_norm": ChartStyle("Gradient norm", "before clipping"),
    "learning_rate": ChartStyle("Learning rate", may_be_log=False),
    "steps_per_s": ChartStyle("Speed", "optimiser steps a second", may_be_log=False),
}

THINNED: Final = (
    f"A line of more than {MAX_POINTS} points shows the median of neighbouring ones, in a band "
    f"from the lowest to the highest."
)


def curves(runs: Sequence[RunContents]) -> Markup:
    """Draw every figure that some run logged: the ones we know first, then by name."""
    logged = {name for run in runs for name in run.log.figures}
    names = [name for name in STYLES if name in logged] + sorted(logged - STYLES.keys())
    if not names:
        return element("p", "Nothing logged yet.", class_="empty")
    last_step = max(
        point.step for run in runs for points in run.log.figures.values() for point in points[-1:]
    )
    return element(
        "div",
        element("p", THINNED, class_="note") if _is_some_thinned(runs) else None,
        element("div", [_figure(name, runs, last_step) for name in names], class_="charts"),
    )


def _is_some_thinned(runs: Sequence[RunContents]) -> bool:
    return any(len(points) > MAX_POINTS for run in runs for points in run.log.figures.values())


def _figure(name: str, runs: Sequence[RunContents], last_step: int) -> Markup:
    lines = [
        Line(run.label, colour, run.log.figures[name])
        for colour, run in enumerate(runs)
        if name in run.log.figures
    ]
    style = STYLES.get(name) or ChartStyle(name.replace("_", " ").capitalize())
    return chart(lines, style, last_step)
