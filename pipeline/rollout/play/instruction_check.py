"""The same episodes with their own, another task's and an empty instruction."""

from pipeline.rollout.play.loop import RolloutConfig, roll_out
from pipeline.rollout.play.result import RolloutResult
from pipeline.rollout.play.tasks import InstructionSource


def check_instructions(config: RolloutConfig) -> tuple[RolloutResult, RolloutResult, RolloutResult]:
    """Roll out under the own instructions, under those of other tasks, and under none.

    The folders of the last two are named after `config.out`. Errors as in `roll_out`.

    Raises:
        AgentMismatchError: training had fewer than two instructions.
    """

    def rolled_out(source: InstructionSource) -> RolloutResult:
        folder = config.out.with_name(f"{config.out.name}-{source}-instruction")
        changes = {} if source == "own" else {"instruction_source": source, "out": folder}
        return roll_out(config.model_copy(update=changes))

    other = rolled_out("other")  # first: it may be refused
    return rolled_out("own"), other, rolled_out("empty")
