"""Whether a policy follows its instruction: the same seeds under its own and other ones.

Success alone does not show it: where the images show the task, a policy may ignore its instruction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.rollout.play.result import EpisodeResult, RolloutResult, wilson_interval
from pipeline.rollout.report.paired import PairedOutcome, newcombe_interval

IGNORED: Final = 0.02  # change of normalized actions, whose range is 2: 1 %
WORDS: Final = {"other": "another task's instruction", "empty": "an empty instruction"}
NORMAL_95: Final = 1.96  # standard errors to either side of a mean


@dataclass(frozen=True)
class InstructionEffect:
    """A rollout under other instructions than its own, against the one under these."""

    instruction_source: str
    """`other`: another task's instruction; or `empty`."""
    solved: int
    own_solved: int
    episodes: int
    """Those that both rollouts have."""
    interval: tuple[float, float]
    """95 % Wilson interval of `solved`."""
    difference: float
    """Success rate under the own instructions minus this one."""
    difference_interval: tuple[float, float]
    """Its 95 % interval; see `newcombe_interval`."""
    change: float
    """Root mean squared change of an episode's first actions, normalized; mean over episodes."""
    change_interval: tuple[float, float]
    """Its 95 % interval."""

    @property
    def alarm(self) -> str | None:
        """Why the policy may not follow it; None where it does."""
        words = WORDS[self.instruction_source]
        if self.change < IGNORED:
            return (
                f"the policy ignores its instruction: with {words} its first actions change by "
                f"{self.change:.3f} of a range of 2"
            )
        if self.instruction_source == "other" and self.difference_interval[0] <= 0:
            return (
                f"the policy is not shown to follow its instruction: it solves {self.own_solved} "
                f"of {self.episodes} episodes with its own, and {self.solved} with another task's"
            )
        return None

    def line(self) -> str:
        """Return the figures in words."""
        low, high = (100 * end for end in self.interval)
        below, above = (100 * end for end in self.difference_interval)
        return (
            f"with {WORDS[self.instruction_source]}: solved {self.solved} of {self.episodes} "
            f"({low:.0f} to {high:.0f} %), {100 * self.difference:.0f} points below its own "
            f"instruction ({below:.0f} to {above:.0f}); first actions change by {self.change:.2f} "
            f"({self.change_interval[0]:.2f} to {self.change_interval[1]:.2f})"
        )


def measure_effect(own: RolloutResult, other: RolloutResult) -> InstructionEffect:
    """Compare two rollouts of one policy on the same seeds under different instructions."""
    first, second = _by_key(own), _by_key(other)
    keys = sorted(first.keys() & second.keys())
    outcome = PairedOutcome.of(
        {key: first[key].success for key in keys}, {key: second[key].success for key in keys}
    )
    changes = [_change(first[key], second[key]) for key in keys]
    change, margin = float(np.mean(changes)), 0.0
    if len(changes) > 1:
        margin = NORMAL_95 * float(np.std(changes, ddof=1)) / math.sqrt(len(changes))
    solved = outcome.both + outcome.second_only
    return InstructionEffect(
        instruction_source=other.instruction_source,
        solved=solved,
        own_solved=outcome.both + outcome.first_only,
        episodes=len(keys),
        interval=wilson_interval(solved, len(keys)),
        difference=outcome.difference,
        difference_interval=newcombe_interval(outcome),
        change=change,
        change_interval=(max(0.0, change - margin), change + margin),
    )


def _by_key(result: RolloutResult) -> Mapping[tuple[str, int], EpisodeResult]:
    return {(episode.task, episode.seed): episode for episode in result.episodes}


def _change(first: EpisodeResult, second: EpisodeResult) -> float:
    difference = np.subtract(first.first_actions, second.first_actions)
    return float(np.sqrt(np.mean(np.square(difference))))
