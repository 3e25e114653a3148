"""Options that several commands take: one wording, one range."""

from typing import Annotated, Final

import typer

from pipeline.rollout.gate.camera_verdict import CameraCheckMode

DATASET: Final = "A dataset: folder, file, hf://owner/name[@revision]; or its manifest."
LOCATION: Final = ": a folder, s3://bucket/path or gs://bucket/path."  # ends the help of a store

CheckpointOption = Annotated[str, typer.Option(help="latest, best or a step.")]
EvaluationsOption = Annotated[
    int | None, typer.Option(min=1, help="Head passes a decision; default the objective's.")
]
EncoderOption = Annotated[
    str | None, typer.Option(help="Path or name of the run's encoder, if it moved.")
]
DeviceOption = Annotated[
    str, typer.Option(help="Where networks run: auto (a GPU if there is one), cpu, cuda, cuda:N.")
]
CameraCheckOption = Annotated[
    CameraCheckMode,
    typer.Option(help="What follows where the cameras do not show what training showed."),
]
