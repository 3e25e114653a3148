"""Runs against each other on common seeds; `templates/comparison.html`."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from pipeline.rollout.report.contents import EpisodeKey, Rollout, RunContents
from pipeline.rollout.report.paired import PairedOutcome, exact_mcnemar, holm, newcombe_interval

SIGNIFICANT: Final = 0.05  # probability of calling equal policies different
MAX_SEEDS: Final = 50  # marks in one row of the picture


@dataclass(frozen=True)
class Pair:
    """Two runs on the same environment."""

    env: str
    first: RunContents
    second: RunContents
    outcome: PairedOutcome
    """On the seeds that both ran."""
    is_partial: bool
    """One of them also ran seeds that the other did not."""
    max_steps: tuple[int, int]
    """Control steps after which an episode of the first and of the second counts as failed."""

    @property
    def better(self) -> str:
        """Label of the run with more successes on the common seeds."""
        is_first = self.outcome.first_only > self.outcome.second_only
        return (self.first if is_first else self.second).label

    @property
    def p_value(self) -> float:
        """P-value of equal success rates, of this pair by itself."""
        return exact_mcnemar(self.outcome)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference of the success rates."""
        return newcombe_interval(self.outcome)


@dataclass(frozen=True)
class SeedRow:
    """A run's outcomes on some of an environment's seeds."""

    run: RunContents
    seeds: Sequence[EpisodeKey]
    successes: dict[EpisodeKey, bool]
    """Whether each seed that the run ran was solved."""


@dataclass(frozen=True)
class Repeats:
    """Runs that differ by their training seed alone."""

    runs: list[RunContents]
    figures: dict[str, list[float]]
    """The last validation error, and the success rate of each environment, of the runs."""


def comparison(runs: Sequence[RunContents]) -> dict[str, object] | None:
    """Compare each pair of runs on each environment that both ran; None for a single run."""
    if len(runs) == 1:
        return None
    pairs, apart = find_pairs(runs)
    adjusted = holm([pair.p_value for pair in pairs])
    return {
        "repeats": find_repeats(runs),
        "pairs": list(zip(pairs, adjusted, strict=True)),
        "apart": apart,
        "significant": SIGNIFICANT,
        "seed_rows": {pair.env: _seed_rows(pair.env, runs) for pair in pairs},
    }


def chosen(run: RunContents, env: str) -> Rollout | None:
    """Return the rollout that represents a run: the one of most episodes, then the latest step."""
    found = [rollout for rollout in run.final_rollouts if rollout.result.env == env]
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
            if outcome.trials == 0:
                apart.append((env, first, second))
                continue
            is_partial = ours.successes.keys() != theirs.successes.keys()
            max_steps = (ours.result.max_steps, theirs.result.max_steps)
            pairs.append(Pair(env, first, second, outcome, is_partial, max_steps))
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


def _seed_rows(env: str, runs: Sequence[RunContents]) -> list[SeedRow]:
    """Return the outcomes of all runs on an environment, the same seeds below each other."""
    found = [(run, chosen(run, env)) for run in runs]
    outcomes = [(run, rollout.successes) for run, rollout in found if rollout]
    seeds = sorted({seed for _, successes in outcomes for seed in successes})
    return [
        SeedRow(run, some, successes)
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
