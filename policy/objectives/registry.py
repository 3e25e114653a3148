"""Every objective by its `kind`, as `--set agent.objective.kind=...` names it."""

from typing import Annotated

from pydantic import Field

from policy.errors import MissingExtraError
from policy.objectives.base import Objective
from policy.objectives.diffusion_config import DiffusionConfig
from policy.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from policy.objectives.improved_meanflow import ImprovedMeanFlow, ImprovedMeanFlowConfig
from policy.objectives.improved_meanflow_jump import (
    ImprovedMeanFlowJump,
    ImprovedMeanFlowJumpConfig,
)
from policy.objectives.meanflow import MeanFlow, MeanFlowConfig
from policy.objectives.mip import Mip, MipConfig
from policy.objectives.regression import Regression, RegressionConfig

ObjectiveConfig = Annotated[
    ImprovedMeanFlowConfig
    | ImprovedMeanFlowJumpConfig
    | MeanFlowConfig
    | FlowMatchingConfig
    | DiffusionConfig
    | RegressionConfig
    | MipConfig,
    Field(discriminator="kind"),
]


def build_objective(config: ObjectiveConfig) -> Objective:
    """Build the objective that a configuration describes.

    Raises:
        MissingExtraError: diffusion is asked for and its library is not installed.
    """
    objective: Objective
    match config:
        case ImprovedMeanFlowConfig():
            objective = ImprovedMeanFlow(config)
        case ImprovedMeanFlowJumpConfig():
            objective = ImprovedMeanFlowJump(config)
        case MeanFlowConfig():
            objective = MeanFlow(config)
        case FlowMatchingConfig():
            objective = FlowMatching(config)
        case RegressionConfig():
            objective = Regression(config)
        case MipConfig():
            objective = Mip(config)
        case DiffusionConfig():
            try:
                from policy.objectives.diffusion import Diffusion  # noqa: PLC0415 - optional
            except ModuleNotFoundError as error:
                raise MissingExtraError(
                    f"objective diffusion needs the module {error.name}, which is not installed; "
                    f"run `pip install frozen-vla[baselines]`"
                ) from error
            objective = Diffusion(config)
    return objective
