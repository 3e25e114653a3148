"""`vla-serve`: let a robot ask a trained policy for actions, over openpi's websocket protocol."""

from pathlib import Path
from typing import Annotated

import typer

from cli.exits import exit_on_vla_error
from cli.options import (
    CameraCheckOption,
    CheckpointOption,
    DeviceOption,
    EncoderOption,
    EvaluationsOption,
)
from pipeline.rollout.envs.base import FIRST_ROLLOUT_SEED
from pipeline.rollout.serve.config import TOKEN_VARIABLE, ServeConfig, read_token
from pipeline.rollout.serve.server import serve

main = typer.Typer(add_completion=False)


@main.command("serve")
def serve_run(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    host: Annotated[str, typer.Option(help="Address; other than loopback needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the token; default ${TOKEN_VARIABLE}.")
    ] = None,
    checkpoint: CheckpointOption = "latest",
    evaluations: EvaluationsOption = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Decides the noise of a connection's first episode.")
    ] = FIRST_ROLLOUT_SEED,
    max_message_mib: Annotated[
        int, typer.Option(min=1, max=1024, help="Largest message of a client, in MiB.")
    ] = 16,
    encoder: EncoderOption = None,
    device: DeviceOption = "auto",
    camera_check: CameraCheckOption = "refuse",
) -> None:
    """Serve a trained policy to robots, through the encoder of its training, until Ctrl-C."""
    with exit_on_vla_error("nothing was served yet"):
        config = ServeConfig(
            run=run,
            host=host,
            port=port,
            token=read_token(token_file),
            max_message_mib=max_message_mib,
            checkpoint=checkpoint,
            nfe=evaluations,
            first_seed=seed,
            encoder=encoder,
            device=device,
            camera_check=camera_check,
        )
        serve(config, typer.echo)
        typer.echo("stopped")
