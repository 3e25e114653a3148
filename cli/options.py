"""Options that several commands take: one wording, one range."""

from typing import Annotated

import typer

from pipeline.rollout.camera_verdict import CameraCheckMode

CheckpointOption = Annotated[str, typer.Option(help="latest, best or a step.")]
EvaluationsOption = Annotated[
    int | None, typer.Option(min=1, help="Head passes a decision; default the objective's.")
]
BackboneOption = Annotated[
    str | None, typer.Option(help="Where the run's encoder lies now, if it moved.")
]
CameraCheckOption = Annotated[
    CameraCheckMode,
    typer.Option(help="What follows where the cameras do not show what training showed."),
]
