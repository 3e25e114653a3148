"""Runs against each other, where they met the same environment and seeds.

Knows rollouts as read and the tests in `paired.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from pipeline.rollout.report.contents import Rollout, RunContents
from pipeline.rollout.report.markup import Child, Markup, element
from pipeline.rollout.report.paired import PairedOutcome, exact_mcnemar, holm, newcombe_interval
from pipeline.rollout.report.tables import colour_class, row, swatch, table

SIGNIFICANT: Final = 0.05  # probability of calling equal policies different
CELL: Final = 14.0  # width of a seed's mark, in the picture's own units
MIN_SEEDS: Final = 40  # fewer leave their row empty, for marks of the same size
MAX_SEEDS: Final = 50  # marks in one row of the picture


@dataclass(frozen=True)
class Pair:
    """Two runs on the same environment, with what they share."""

    env: str
    first: RunContents
    second: RunContents
    outcome: PairedOutcome
    is_partial: bool
    """One of them also met seeds that the other did not."""
    conditions: str
    """What differs between their rollouts beside the policy; empty normally."""

    @property
    def p_value(self) -> float:
        """Of equal success rates, by itself."""
        return exact_mcnemar(self.outcome)


def comparison(runs: Sequence[RunContents]) -> Markup | None:
    """Compare each pair of runs on each environment that both met; None for a single run."""
    if len(runs) == 1:
        return None
    pairs, apart = find_pairs(runs)
    said = [
        f"{first.label} and {second.label} share no seed on {env}: nothing to compare pair by pair."
        for env, first, second in apart
    ]
    if not pairs:
        said = said or ["No two of these runs were rolled out on the same environment."]
        return element("div", [element("p", line, class_="empty") for line in said])
    adjusted = holm([pair.p_value for pair in pairs])
    verdicts = [
        element("li", _sentence(pair, p, len(pairs)))
        for pair, p in zip(pairs, adjusted, strict=True)
    ]
    envs = dict.fromkeys(pair.env for pair in pairs)
    return element(
        "div",
        element("ul", verdicts, class_="verdicts"),
        _table(pairs, adjusted),
        [_seed_picture(env, runs) for env in envs],
        [element("p", line, class_="empty") for line in said],
        element("p", _method(len(pairs)), class_="method"),
    )


def chosen(run: RunContents, env: str) -> Rollout | None:
    """Return the rollout that stands for a run: the one of most episodes, then the latest step."""
    there = [rollout for rollout in run.final_rollouts if rollout.result.env == env]
    return max(
        there, key=lambda r: (len(r.result.episodes), r.result.checkpoint_step), default=None
    )


def find_pairs(
    runs: Sequence[RunContents],
) -> tuple[list[Pair], list[tuple[str, RunContents, RunContents]]]:
    """Return what can be compared, and the pairs that share an environment but no seed."""
    pairs, apart = [], []
    envs = dict.fromkeys(r.result.env for run in runs for r in run.final_rollouts)
    for env in envs:
        for first, second in combinations(runs, 2):
            ours, theirs = chosen(first, env), chosen(second, env)
            if ours is None or theirs is None:
                continue
            outcome = PairedOutcome.of(ours.successes, theirs.successes)
            if outcome.trials == 0:
                apart.append((env, first, second))
                continue
            is_partial = ours.successes.keys() != theirs.successes.keys()
            pairs.append(Pair(env, first, second, outcome, is_partial, _conditions(ours, theirs)))
    return pairs, apart


def _conditions(ours: Rollout, theirs: Rollout) -> str:
    if ours.result.max_steps == theirs.result.max_steps:
        return ""
    return (
        f" Their time limits differ ({ours.result.max_steps} and {theirs.result.max_steps} steps)."
    )


def _sentence(pair: Pair, adjusted: float, num_pairs: int) -> list[str | Markup]:
    outcome = pair.outcome
    a, b = pair.first.label, pair.second.label
    seeds = f"{'the ' if pair.is_partial else ''}{outcome.trials} seeds"
    seeds += " that both met" if pair.is_partial else ""
    found = f"{a} solved {outcome.both + outcome.first_only} of {seeds} on {pair.env}, {b} solved "
    found += f"{outcome.both + outcome.second_only}. "
    discordant = outcome.first_only + outcome.second_only
    if discordant == 0:
        return [found, element("b", "They agree on every seed."), pair.conditions]
    found += f"They differ on {discordant}: {outcome.first_only} that only {a} solved, "
    found += f"{outcome.second_only} that only {b} solved. "
    name = "p" if num_pairs == 1 else "adjusted p"
    p = f"{name} {_probability(adjusted)}"
    if adjusted >= SIGNIFICANT:
        verdict = f"These episodes do not tell the two apart ({p})."
    else:
        better = a if outcome.first_only > outcome.second_only else b
        verdict = f"{better} is better ({p})."
    return [found, element("b", verdict), pair.conditions]


def _table(pairs: Sequence[Pair], adjusted: Sequence[float]) -> Markup:
    names = ["Pair", "Seeds", "Both", "First only", "Second only", "Neither", "Difference", "p"]
    names += ["p, adjusted"] if len(pairs) > 1 else []
    rows = []
    for pair, p in zip(pairs, adjusted, strict=True):
        outcome = pair.outcome
        low, high = newcombe_interval(outcome)
        interval = f"{_points(low)} to {_points(high)}"
        cells: list[Child] = [
            outcome.trials,
            outcome.both,
            outcome.first_only,
            outcome.second_only,
            outcome.neither,
            [_points(outcome.difference), element("small", interval)],
            _probability(pair.p_value).removeprefix("= "),
        ]
        if len(pairs) > 1:
            cells.append(_probability(p).removeprefix("= "))
        name = [pair.first.label, " \N{EN DASH} ", pair.second.label, element("small", pair.env)]
        rows.append(row(name, cells))
    return table(names, rows, "pairs")


def _seed_picture(env: str, runs: Sequence[RunContents]) -> Markup:
    """Draw a mark for every seed of every run, the same seeds under each other."""
    rollouts = [(i, run, chosen(run, env)) for i, run in enumerate(runs)]
    seeds = sorted({seed for _, _, rollout in rollouts if rollout for seed in rollout.successes})
    width = CELL * max(MIN_SEEDS, min(MAX_SEEDS, len(seeds)))
    rows = []
    for start in range(0, len(seeds), MAX_SEEDS):
        part = seeds[start : start + MAX_SEEDS]
        for colour, run, rollout in rollouts:
            if rollout is not None and rollout.successes.keys() & set(part):
                rows.append(_seed_row(part, rollout, colour, run.label, width))
    caption = element(
        "figcaption",
        element("b", f"Seed by seed on {env}"),
        element("span", "filled: solved; hollow: failed; none: not met", class_="note"),
    )
    return element("figure", caption, rows, class_="seeds")


def _seed_row(
    seeds: Sequence[int], rollout: Rollout, colour: int, label: str, width: float
) -> Markup:
    marks = []
    for index, seed in enumerate(seeds):
        if seed not in rollout.successes:
            continue
        solved = rollout.successes[seed]
        title = element("title", f"seed {seed}: {'solved' if solved else 'failed'}")
        kind = "mark" if solved else "mark hollow"
        x = index * CELL + 2
        marks.append(
            element("rect", title, class_=kind, x=x, y=2, width=CELL - 4, height=CELL - 4, rx=1.5)
        )
    picture = element(
        "svg",
        marks,
        viewBox=f"0 0 {width:g} {CELL:g}",
        preserveAspectRatio="xMinYMid",
        class_=colour_class(colour),
        role="img",
        aria_label=f"{label}, seeds {seeds[0]} to {seeds[-1]}",
    )
    return element("p", swatch(colour), element("span", label, class_="label"), picture)


def _method(num_pairs: int) -> str:
    said = (
        "p: exact McNemar test, two-sided, on the seeds on which two runs differ. Difference of "
        "success rates, first minus second, in percentage points, with Newcombe's 95 % interval "
        "for paired rates (Statistics in Medicine 17, 1998, method 10). A run is represented by "
        "its rollout of the most episodes."
    )
    if num_pairs == 1:
        return said
    return f"{said} As {num_pairs} pairs are compared, p is adjusted by Holm's method."


def _points(share: float) -> str:
    points = round(100 * share)
    return f"{points:+d}".replace("-", "\N{MINUS SIGN}") if points else "0"


def _probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
