"""Every objective by its `kind`, as `--set agent.objective.kind=...` names it."""

from typing import Annotated, Final

from pydantic import Field

from policy.objectives.base import Objective, ObjectiveSettings
from policy.objectives.deterministic import Mip, MipConfig, Regression, RegressionConfig
from policy.objectives.diffusion import Diffusion, DiffusionConfig
from policy.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from policy.objectives.improved_meanflow_jump import (
    ImprovedMeanFlowJump,
    ImprovedMeanFlowJumpConfig,
)
from policy.objectives.meanflow import ImprovedMeanFlowConfig, MeanFlow, MeanFlowConfig

OBJECTIVES: Final[dict[type[ObjectiveSettings], type[Objective]]] = {
    ImprovedMeanFlowConfig: MeanFlow,
    ImprovedMeanFlowJumpConfig: ImprovedMeanFlowJump,
    MeanFlowConfig: MeanFlow,
    FlowMatchingConfig: FlowMatching,
    DiffusionConfig: Diffusion,
    RegressionConfig: Regression,
    MipConfig: Mip,
}

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
    """Build an objective (MissingExtraError: its library is not installed)."""
    return OBJECTIVES[type(config)](config)
