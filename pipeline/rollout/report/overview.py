"""The head of the page: what the runs are, how well they did, and what to be warned of.

Knows runs and their rollouts as read; nothing about files.
"""

from collections.abc import Callable, Sequence
from typing import Final

from pipeline.rollout.report.contents import Rollout, RunContents
from pipeline.rollout.report.markup import Child, Markup, element
from pipeline.rollout.report.scales import number_text
from pipeline.rollout.report.tables import (
    colour_class,
    percent,
    row,
    run_headings,
    swatch,
    table,
)

Fact = tuple[str, Callable[[RunContents], str]]

BAR_WIDTH: Final = 200  # of the picture of an interval, in its own units
BAR_HEIGHT: Final = 16


def headline(runs: Sequence[RunContents]) -> str:
    """Return the page's title."""
    if len(runs) == 1:
        return runs[0].label
    return f"{len(runs)} runs side by side"


def notices(runs: Sequence[RunContents]) -> Markup:
    """Say what a reader must know before a figure: overridden gates, encoders without training."""
    alarms: list[Child] = [alarm for run in runs for alarm in _alarms(run)]
    cautions: list[Child] = [caution for run in runs for caution in _cautions(run)]
    untrained = [run.label for run in runs if not run.description.data.encoder.pretrained]
    if untrained:
        which = "" if len(untrained) == len(runs) else f" ({', '.join(untrained)})"
        cautions.insert(
            0,
            [
                element("b", f"The encoder is not pretrained{which}."),
                " A stand-in with seeded weights made these features: the figures show that the "
                "way works, and say nothing about how well SigLIP2's features would do.",
            ],
        )
    return element(
        "div",
        [element("p", alarm, class_="alarm", role="alert") for alarm in alarms],
        [element("p", caution, class_="caution") for caution in cautions],
        class_="notices",
    )


def facts(runs: Sequence[RunContents]) -> Markup:
    """Return the runs' main facts as a table, a column a run."""
    rows = [row(name, [tell(run) for run in runs]) for name, tell in FACTS]
    headings = ["Run", *run_headings([run.label for run in runs])] if len(runs) > 1 else []
    return table(headings, rows, "facts")


def success_table(runs: Sequence[RunContents]) -> Markup:
    """Return how often each rollout succeeded, with its interval as numbers and as a picture."""
    rows = [
        _success_row(run, rollout, colour)
        for colour, run in enumerate(runs)
        for rollout in run.final_rollouts
    ]
    if not rows:
        return element("p", "No rollout yet; make one with vla-rollout.", class_="empty")
    ends = element("span", [element("span", end) for end in ("0", "50", "100 %")], class_="ends")
    names = ("Run", "Environment", "Solved", "Rate", "95 % interval", ends)
    return table(names, rows, "success")


def _success_row(run: RunContents, rollout: Rollout, colour: int) -> Markup:
    result = rollout.result
    seeds = [episode.seed for episode in result.episodes]
    low, high = result.success_interval
    about = (
        f"{rollout.name}, step {result.checkpoint_step:,}, seeds {min(seeds)} to {max(seeds)}, "
        f"{result.num_evaluations} pass{'es' if result.num_evaluations > 1 else ''}, "
        f"encoder {result.encoder.name}"
    )
    cells = [
        [result.env, element("small", about)],
        f"{rollout.solved} of {len(seeds)}",
        element("b", percent(result.success_rate)),
        f"{100 * low:.0f} to {percent(high)}",
        interval_bar(low, result.success_rate, high, colour),
    ]
    return row([swatch(colour), run.label], cells)


def interval_bar(low: float, middle: float, high: float, colour: int) -> Markup:
    """Draw an interval of a share and its middle, between 0 and 1."""
    half = BAR_HEIGHT / 2

    def x(share: int | float) -> str:
        return f"{4 + share * (BAR_WIDTH - 8):.1f}"

    ticks = [
        element("line", class_="grid", x1=x(share), x2=x(share), y1=0, y2=BAR_HEIGHT)
        for share in (0, 0.5, 1)
    ]
    interval = element("line", class_="interval", x1=x(low), x2=x(high), y1=half, y2=half)
    return element(
        "svg",
        ticks,
        element(
            "g",
            interval,
            element("circle", cx=x(middle), cy=half, r=4),
            class_=colour_class(colour),
        ),
        viewBox=f"0 0 {BAR_WIDTH} {BAR_HEIGHT}",
        role="img",
        aria_label=f"{percent(middle)}, between {percent(low)} and {percent(high)}",
    )


def _alarms(run: RunContents) -> list[str]:
    found = []
    for rollout in run.rollouts:
        place = f"{run.label}, rollout {rollout.name}"
        result, data = rollout.result, run.description.data
        found += [f"{place}: {alarm}" for alarm in result.alarms()]
        if result.encoder.fingerprint != data.encoder.fingerprint:
            found.append(f"{place}: another encoder than in training ({result.encoder.name})")
        if result.store_digest != data.store_digest:
            found.append(f"{place}: its policy was trained on other data than this run")
    return found


def _cautions(run: RunContents) -> list[str]:
    found = [f"{run.label}: {remark}." for remark in run.log.remarks]
    steps = run.description.config.steps
    if run.step < steps:
        found.append(f"{run.label}: not finished, {run.step:,} of {steps:,} steps in checkpoints.")
    return found


def _encoder(run: RunContents) -> str:
    encoder = run.description.data.encoder
    trained = "pretrained" if encoder.pretrained else "not pretrained"
    return f"{encoder.name} at {encoder.revision[:12]}, {encoder.compute_dtype}, {trained}"


def _head(run: RunContents) -> str:
    agent = run.description.config.agent
    head = agent.head
    return (
        f"{head.n_layer} layers of {head.n_emb}; sees {agent.obs_horizon} steps, predicts "
        f"{head.pred_horizon}, executes {agent.num_action_steps}"
    )


def _best_error(run: RunContents) -> str:
    points = run.log.figures.get("heldout_error")
    if not points:
        return "none measured"
    best = min(points, key=lambda point: point.value)
    last = f"{number_text(points[-1].value)} at step {points[-1].step:,}"
    if best.value == points[-1].value:
        return f"{last}, the best"
    return f"{last}; best {number_text(best.value)} at step {best.step:,}"


FACTS: Final[tuple[Fact, ...]] = (
    ("Data", lambda run: run.description.data.name),
    ("Encoder", _encoder),
    ("Views", lambda run: ", ".join(run.description.spec.view_names)),
    (
        "State, action",
        lambda run: (
            f"{run.description.spec.state_dim} and {run.description.spec.action_dim} wide, "
            f"{run.description.data.fps:g} steps/s"
        ),
    ),
    ("Preset", lambda run: run.description.config.preset),
    ("Objective", lambda run: run.description.config.agent.objective.kind.replace("_", " ")),
    ("Features", lambda run: ", ".join(run.description.config.agent.readers)),
    ("Head", _head),
    ("Parameters", lambda run: f"{run.num_parameters:,}"),
    (
        "Steps",
        lambda run: (
            f"{run.step:,} of {run.description.config.steps:,}, "
            f"{run.description.config.batch_size} windows each"
        ),
    ),
    ("Held-out error", _best_error),
)
