"""Whether a policy follows its instruction: the same seeds under its own and other ones.

Success alone does not show it: where the images show the task, a policy may ignore its instruction.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.rollout.play.result import NORMAL_QUANTILE, RolloutResult
from pipeline.rollout.report.comparison import PairedOutcome

IGNORED: Final = 0.02  # change of normalized actions, whose range is 2: 1 %
WORDS: Final = {"other": "another task's instruction", "empty": "an empty instruction"}


@dataclass(frozen=True)
class InstructionEffect:
    """A rollout under other instructions than its own, against the one under these."""

    instruction_source: str
    """`other`: another task's instruction; or `empty`."""
    outcome: PairedOutcome
    """First under the own instructions, second under the other ones."""
    change: float
    """Root mean squared change of an episode's first actions, normalized; mean over episodes."""
    change_interval: tuple[float, float]
    """Its 95 % interval."""
    interval: tuple[float, float]
    """95 % interval of the success rate under the other instructions."""

    @property
    def alarm(self) -> str | None:
        """Why the policy may not follow it; None where it does."""
        own_solved, solved = self.outcome.solved
        if self.change < IGNORED:
            return (
                f"the policy ignores its instruction: with {WORDS[self.instruction_source]} its "
                f"first actions change by {self.change:.3f} of a range of 2"
            )
        if self.instruction_source == "other" and self.outcome.interval[0] <= 0:
            return (
                f"the policy is not shown to follow its instruction: it solves {own_solved} of "
                f"{self.outcome.trials} episodes with its own, and {solved} with another task's"
            )
        return None

    def line(self) -> str:
        """Return the figures in words."""
        low, high = (100 * end for end in self.interval)
        below, above = (100 * end for end in self.outcome.interval)
        return (
            f"with {WORDS[self.instruction_source]}: solved {self.outcome.solved[1]} of "
            f"{self.outcome.trials} ({low:.0f} to {high:.0f} %), "
            f"{100 * self.outcome.difference:.0f} points below its own instruction ({below:.0f} to "
            f"{above:.0f}); first actions change by {self.change:.2f} "
            f"({self.change_interval[0]:.2f} to {self.change_interval[1]:.2f})"
        )


def measure_effect(own: RolloutResult, other: RolloutResult) -> InstructionEffect:
    """Compare two rollouts of one policy on the same seeds under different instructions."""
    first, second = (
        {(episode.task, episode.seed): episode for episode in result.episodes}
        for result in (own, other)
    )
    changes = [
        np.subtract(first[key].first_actions, second[key].first_actions)
        for key in sorted(first.keys() & second.keys())
    ]
    sizes = [np.sqrt(np.mean(np.square(change))) for change in changes]
    change, margin = float(np.mean(sizes)), 0.0
    if len(sizes) > 1:
        margin = NORMAL_QUANTILE * float(np.std(sizes, ddof=1)) / math.sqrt(len(sizes))
    return InstructionEffect(
        instruction_source=other.instruction_source,
        outcome=PairedOutcome.of(
            {key: episode.success for key, episode in first.items()},
            {key: episode.success for key, episode in second.items()},
        ),
        change=change,
        change_interval=(max(0.0, change - margin), change + margin),
        interval=other.success_interval,
    )
