"""Every objective by its `kind`, as `--set agent.objective.kind=...` names it."""

from typing import Annotated

from pydantic import Field

from policy.objectives.base import Objective
from policy.objectives.deterministic import Mip, MipConfig, Regression, RegressionConfig
from policy.objectives.diffusion import Diffusion, DiffusionConfig
from policy.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from policy.objectives.improved_meanflow_jump import (
    ImprovedMeanFlowJump,
    ImprovedMeanFlowJumpConfig,
)
from policy.objectives.meanflow import (
    ImprovedMeanFlow,
    ImprovedMeanFlowConfig,
    MeanFlow,
    MeanFlowConfig,
)

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


def build_objective(config: ObjectiveConfig) -> Objective:  # noqa: PLR0911 - one per objective
    """Build the objective that a configuration describes.

    Raises:
        MissingExtraError: the objective needs a library that is not installed.
    """
    match config:
        case ImprovedMeanFlowConfig():
            return ImprovedMeanFlow(config)
        case ImprovedMeanFlowJumpConfig():
            return ImprovedMeanFlowJump(config)
        case MeanFlowConfig():
            return MeanFlow(config)
        case FlowMatchingConfig():
            return FlowMatching(config)
        case DiffusionConfig():
            return Diffusion(config)
        case RegressionConfig():
            return Regression(config)
        case MipConfig():
            return Mip(config)
