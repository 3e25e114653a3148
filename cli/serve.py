"""`vla-serve`: serve a trained policy to robots, over openpi's websocket protocol."""

from pathlib import Path
from typing import Annotated

import typer

from cli.command import (
    CheckpointOption,
    DeviceOption,
    EncoderOption,
    SettingsOption,
    build_config,
    exit_on_vla_error,
)
from pipeline.rollout.serve.config import TOKEN_VARIABLE, ServeConfig, check_exposure, read_token
from policy.errors import MissingExtraError, install_command

main = typer.Typer(add_completion=False)


@main.command()
def serve(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; all but loopback require a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 selects a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help=f"File that contains the token; default ${TOKEN_VARIABLE}.")
    ] = None,
    checkpoint: CheckpointOption = "latest",
    encoder: EncoderOption = None,
    device: DeviceOption = "auto",
    settings: SettingsOption = None,
) -> None:
    """Serve a trained policy to robots, through the encoder of its training, until Ctrl-C."""
    with exit_on_vla_error("nothing was served yet"):
        config = build_config(
            ServeConfig,
            settings,
            run=run,
            host=host,
            port=port,
            token=read_token(token_file),
            checkpoint=checkpoint,
            encoder=encoder,
            device=device,
        )
        check_exposure(config.host, config.token)
        try:
            from pipeline.rollout.serve.sockets import serve_until_signal  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"{run}: the module {error.name} is not installed; {install_command('serve')}"
            ) from error
        serve_until_signal(config, typer.echo)
        typer.echo("stopped")
