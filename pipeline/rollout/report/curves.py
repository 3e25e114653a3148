"""The curves of training: one chart per figure, all runs in it; `templates/training.html`."""

from collections.abc import Sequence
from typing import Final

from pipeline.rollout.report.chart import MAX_POINTS, Chart, ChartStyle, Line, chart
from pipeline.rollout.report.contents import VALIDATION_ERROR, RunContents

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
    """Lay out every figure that some run logged: the ones we know first, then by name."""
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
