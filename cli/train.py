"""`vla-train`: fit the trainable part of a policy on cached features."""

from pathlib import Path
from typing import Annotated

import typer

from cli.exits import exit_on_vla_error
from pipeline.training.config import with_settings
from pipeline.training.presets import PRESETS, preset_config
from pipeline.training.session import train

main = typer.Typer(add_completion=False)


@main.command(name="train")
def train_command(
    store: Annotated[Path, typer.Argument(help="A complete feature store.")],
    out: Annotated[Path, typer.Option(help="Folder of the run to create.")],
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "proj96",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="One field, as in steps=2000 or agent.head.n_layer=6."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in OUT, if there is one.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where to train, as torch names it.")] = "cpu",
) -> None:
    """Train a policy on cached features."""
    with exit_on_vla_error("add --resume to go on from the last checkpoint"):
        config = with_settings(preset_config(preset), settings or [])
        report = train(store, out, config, resume=resume, device=device)
        typer.echo(report.summary())
