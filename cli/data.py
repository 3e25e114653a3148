"""`vla-data`: the toolbox around datasets, stores and runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.exits import exit_on_vla_error
from pipeline.rollout.record import RecordConfig, record_dataset
from pipeline.training.describe import describe

main = typer.Typer(add_completion=False, no_args_is_help=True, help="The toolbox around the data.")


@main.command()
def record(
    env: Annotated[str, typer.Option(help="Environment, as metaworld/drawer-open-v3.")],
    episodes: Annotated[int, typer.Option(min=1, help="Demonstrations wanted.")],
    out: Annotated[Path, typer.Option(help="Folder to create, or to go on with.")],
    views: Annotated[str, typer.Option(help="Cameras, comma-separated, in the policy's order.")],
    first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first episode.")] = 0,
) -> None:
    """Record a simulator's scripted expert as an ACT/ALOHA HDF5 dataset. Resumable."""
    with exit_on_vla_error("the same command goes on from here"):
        names = tuple(name.strip() for name in views.split(",") if name.strip())
        config = RecordConfig(
            env=env, views=names, episodes=episodes, out=out, first_seed=first_seed
        )
        typer.echo(record_dataset(config).summary())


@main.command()
def info(
    path: Annotated[Path, typer.Argument(help="A feature store or a training run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say what a feature store or a training run is."""
    with exit_on_vla_error("nothing was changed"):
        fields = describe(path)
        if as_json:
            typer.echo(json.dumps(fields, indent=2))
        else:
            width = max(map(len, fields))
            typer.echo("\n".join(f"{name:<{width}}  {value}" for name, value in fields.items()))
