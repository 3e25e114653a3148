"""The same episodes told their own task, another one, and nothing."""

from typing import Literal

from pipeline.rollout.play.loop import RolloutConfig, roll_out
from pipeline.rollout.play.result import RolloutResult

Told = Literal["own", "another", "nothing"]


def roll_out_told(config: RolloutConfig) -> tuple[RolloutResult, RolloutResult, RolloutResult]:
    """Roll out under the own instructions, under those of other tasks, and under none.

    The folders of the last two are named after `config.out`. Errors as in `roll_out`.

    Raises:
        AgentMismatchError: the policy was not told several instructions in training.
    """

    def told(which: Told) -> RolloutResult:
        folder = config.out.with_name(f"{config.out.name}-told-{which}")
        changes = {} if which == "own" else {"told": which, "out": folder}
        return roll_out(config.model_copy(update=changes))

    another = told("another")  # first: it may be refused
    return told("own"), another, told("nothing")
