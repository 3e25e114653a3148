"""Whether two policies differ, where both ran the same seeds.

Two policies on the same seeds have the same initial states: only the seeds on which they differ
show which is better, and far fewer episodes are needed than for two separate rates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.rollout.play.result import wilson_interval


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
    def difference(self) -> float:
        """Success rate of the first minus that of the second, in [-1, 1]."""
        return (self.first_only - self.second_only) / self.trials


def exact_mcnemar(outcome: PairedOutcome) -> float:
    """Return the two-sided p-value of equal success rates, in (0, 1].

    Given on how many seeds the two differ, each of them is then as likely to favor either: a fair
    coin. The value is exact, without an approximation for large samples.

    Source: Q. McNemar, Psychometrika 12 (1947), 153-157; the exact binomial form, as in
    A. Agresti, Categorical Data Analysis (3rd ed.), section 11.1.
    """
    fewer = min(outcome.first_only, outcome.second_only)
    tail = sum(math.comb(outcome.discordant, count) for count in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << outcome.discordant))


def newcombe_interval(outcome: PairedOutcome) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two paired success rates.

    The Wilson intervals of both rates are combined, with the
    correlation of the pairs.

    Source: R. G. Newcombe, Statistics in Medicine 17 (1998), 2635-2650, method 10.
    """
    trials = outcome.trials
    first = outcome.both + outcome.first_only
    second = outcome.both + outcome.second_only
    low_1, high_1 = wilson_interval(first, trials)
    low_2, high_2 = wilson_interval(second, trials)
    down_1, up_1 = first / trials - low_1, high_1 - first / trials
    down_2, up_2 = second / trials - low_2, high_2 - second / trials
    phi = _correlation(outcome)
    below = math.sqrt(max(0.0, down_1**2 - 2 * phi * down_1 * up_2 + up_2**2))
    above = math.sqrt(max(0.0, down_2**2 - 2 * phi * down_2 * up_1 + up_1**2))
    return max(-1.0, outcome.difference - below), min(1.0, outcome.difference + above)


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


def _correlation(outcome: PairedOutcome) -> float:
    """Return phi of the fourfold table, its positive values corrected for continuity."""
    a, b, c, d = outcome.both, outcome.first_only, outcome.second_only, outcome.neither
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if margins == 0:
        return 0.0
    determinant = float(a * d - b * c)
    if determinant > 0:
        determinant = max(0.0, determinant - outcome.trials / 2)
    return determinant / math.sqrt(margins)
