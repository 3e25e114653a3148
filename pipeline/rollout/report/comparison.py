"""Runs against each other on common seeds; `templates/comparison.html`.

Two policies on the same seeds have the same initial states: only the seeds on which they differ
show which is better, and far fewer episodes are needed than for two separate rates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from pipeline.rollout.play.result import wilson_interval
from pipeline.rollout.report.contents import EpisodeKey, Rollout, RunContents

SIGNIFICANT: Final = 0.05  # probability of calling equal policies different
MAX_SEEDS: Final = 50  # marks in one row of the picture


@dataclass(frozen=True)
class PairedOutcome:
    """How often two policies, first and second, solved the same seeds."""

    both: int
    first_only: int
    second_only: int
    neither: int

    @classmethod
    def of(cls, first: Mapping[Any, bool], second: Mapping[Any, bool]) -> "PairedOutcome":
        """Count over the seeds that both have; the mappings go from it to success."""
        pairs = [(first[seed], second[seed]) for seed in first.keys() & second.keys()]
        return cls(
            both=pairs.count((True, True)),
            first_only=pairs.count((True, False)),
            second_only=pairs.count((False, True)),
            neither=pairs.count((False, False)),
        )

    @property
    def trials(self) -> int:
        """Number of seeds that both ran."""
        return self.both + self.discordant + self.neither

    @property
    def discordant(self) -> int:
        """Number of seeds on which the two differ."""
        return self.first_only + self.second_only

    @property
    def solved(self) -> tuple[int, int]:
        """Number of seeds that the first and the second solved."""
        return self.both + self.first_only, self.both + self.second_only

    @property
    def difference(self) -> float:
        """Success rate of the first minus that of the second, in [-1, 1]."""
        return (self.first_only - self.second_only) / self.trials

    @property
    def p_value(self) -> float:
        """Two-sided p-value of equal success rates, in (0, 1]: the exact McNemar test.

        Given on how many seeds the two differ, each of them is then as likely to favor either: a
        fair coin. The value is exact, without an approximation for large samples.

        Source: Q. McNemar, Psychometrika 12 (1947), 153-157; the exact binomial form, as in
        A. Agresti, Categorical Data Analysis (3rd ed.), section 11.1.
        """
        fewer = min(self.first_only, self.second_only)
        tail = sum(math.comb(self.discordant, count) for count in range(fewer + 1))
        return min(1.0, 2 * tail / (1 << self.discordant))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference of the success rates.

        The Wilson intervals of both rates are combined, with the correlation of the pairs.

        Source: R. G. Newcombe, Statistics in Medicine 17 (1998), 2635-2650, method 10.
        """
        (low_1, high_1), (low_2, high_2) = (wilson_interval(n, self.trials) for n in self.solved)
        first, second = (count / self.trials for count in self.solved)
        down_1, up_1 = first - low_1, high_1 - first
        down_2, up_2 = second - low_2, high_2 - second
        phi = self._correlation()
        below = math.sqrt(max(0.0, down_1**2 - 2 * phi * down_1 * up_2 + up_2**2))
        above = math.sqrt(max(0.0, down_2**2 - 2 * phi * down_2 * up_1 + up_1**2))
        return max(-1.0, self.difference - below), min(1.0, self.difference + above)

    def _correlation(self) -> float:
        """Return phi of the fourfold table, its positive values corrected for continuity."""
        a, b, c, d = self.both, self.first_only, self.second_only, self.neither
        margins = (a + b) * (c + d) * (a + c) * (b + d)
        if margins == 0:
            return 0.0
        determinant = float(a * d - b * c)
        if determinant > 0:
            determinant = max(0.0, determinant - self.trials / 2)
        return determinant / math.sqrt(margins)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for there being several, in the same order.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


@dataclass(frozen=True)
class Pair:
    """Two runs on the same environment."""

    env: str
    first: RunContents
    second: RunContents
    rollouts: tuple[Rollout, Rollout]
    """What represents them."""
    outcome: PairedOutcome
    """On the seeds that both ran."""


@dataclass(frozen=True)
class Repeats:
    """Runs that differ by their training seed alone."""

    runs: list[RunContents]
    figures: dict[str, list[float]]
    """The last validation error, and the success rate of each environment, of the runs."""


def comparison(runs: Sequence[RunContents]) -> dict[str, object]:
    """Compare each pair of runs on each environment that both ran."""
    pairs, apart = find_pairs(runs)
    adjusted = holm([pair.outcome.p_value for pair in pairs])
    return {
        "repeats": find_repeats(runs),
        "pairs": list(zip(pairs, adjusted, strict=True)),
        "apart": apart,
        "significant": SIGNIFICANT,
        "seed_rows": {pair.env: _seed_rows(pair.env, runs) for pair in pairs},
    }


def chosen(run: RunContents, env: str) -> Rollout | None:
    """Return a run's rollout under its own instructions, of most episodes, then the latest step."""
    results = [(rollout, rollout.result) for rollout in run.final_rollouts]
    found = [it for it, its in results if (its.env, its.instruction_source) == (env, "own")]
    return max(
        found, key=lambda r: (len(r.result.episodes), r.result.checkpoint_step), default=None
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
            if outcome.trials:
                pairs.append(Pair(env, first, second, (ours, theirs), outcome))
            else:
                apart.append((env, first, second))
    return pairs, apart


def find_repeats(runs: Sequence[RunContents]) -> list[Repeats]:
    """Return the groups of two or more runs of the same data and settings, each of another seed."""
    groups: dict[str, list[RunContents]] = {}
    for run in runs:
        config = run.description.config.model_copy(update={"seed": 0})
        same = run.description.model_copy(update={"config": config})
        groups.setdefault(same.model_dump_json(), []).append(run)
    repeats = []
    for group in groups.values():
        figures: dict[str, list[float]] = {}
        for run in group:
            if run.validation_error is not None:
                figures.setdefault("validation error", []).append(run.validation_error[0].value)
            for env in dict.fromkeys(rollout.result.env for rollout in run.final_rollouts):
                if rollout := chosen(run, env):
                    name = f"success rate on {env}"
                    figures.setdefault(name, []).append(rollout.result.success_rate)
        seeds = {run.description.config.seed for run in group}
        if len(seeds) == len(group) > 1 and figures:
            repeats.append(Repeats(group, figures))
    return repeats


def _seed_rows(
    env: str, runs: Sequence[RunContents]
) -> list[tuple[RunContents, list[EpisodeKey], dict[EpisodeKey, bool]]]:
    """Return runs, some of an environment's seeds, and whether each that was run was solved.

    The same seeds of all runs are below each other.
    """
    found = [(run, chosen(run, env)) for run in runs]
    outcomes = [(run, rollout.successes) for run, rollout in found if rollout]
    seeds = sorted({seed for _, successes in outcomes for seed in successes})
    return [
        (run, some, successes)
        for some in (seeds[i : i + MAX_SEEDS] for i in range(0, len(seeds), MAX_SEEDS))
        for run, successes in outcomes
        if successes.keys() & set(some)
    ]


def points_text(share: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    points = round(100 * share)
    return f"{points:+d}".replace("-", "\N{MINUS SIGN}") if points else "0"


def probability_text(p: float) -> str:
    """Return a p-value with its relation, as `= 0.031` or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
