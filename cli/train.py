"""`vla-train`: fit the trainable part of a policy on cached features."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final

import typer

from cli.exits import exit_on_vla_error
from cli.options import LOCATION
from pipeline.errors import ConfigError
from pipeline.rollout.play.validation import validate_by_rollouts
from pipeline.rollout.report.page import write_report
from pipeline.storage.folders import parse_location
from pipeline.training.config import parse_memory, with_settings
from pipeline.training.presets import PRESETS, preset_config
from pipeline.training.run.tracking import TRACKERS
from pipeline.training.session import train

ROLL_OUT: Final = (sys.executable, "-c", "from cli.rollout import main; main()")

main = typer.Typer(add_completion=False)


@main.command(name="train")
def train_command(
    stores: Annotated[
        list[str], typer.Argument(help=f"Complete stores of one encoder and one robot{LOCATION}")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run to create.")],
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "proj96",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="One field, as in steps=2000 or agent.head.n_layer=6."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in OUT, if there is one.")
    ] = False,
    weights: Annotated[
        str, typer.Option(help="How often a step of each store is drawn, as in 2,1; all alike.")
    ] = "",
    memory: Annotated[
        str | None,
        typer.Option(
            help="Bytes a process takes for the data, as in 8GB; read features again each epoch."
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Path of the encoder for --rollout-env, if it moved."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train, as torch names it.")] = "cpu",
    rollout_env: Annotated[
        str | None,
        typer.Option(help="Roll checkpoints out meanwhile, as in metaworld/drawer-open-v3."),
    ] = None,
    rollout_every: Annotated[
        int, typer.Option(min=1, help="Steps between rollouts; want a checkpoint at each.")
    ] = 5_000,
    rollout_episodes: Annotated[int, typer.Option(min=1, help="Episodes a rollout.")] = 5,
    track: Annotated[
        list[str] | None,
        typer.Option(help=f"Tell {' or '.join(TRACKERS)} too; each is an extra of its name."),
    ] = None,
) -> None:
    """Train a policy on cached features."""
    with exit_on_vla_error("add --resume to go on from the last checkpoint"):
        if backbone is not None and rollout_env is None:
            raise ConfigError("--backbone needs --rollout-env: training reads cached features")
        locations = [parse_location(store) for store in stores]
        settings = list(settings or ())
        if memory is not None:
            settings.append(f"memory={parse_memory(memory)}")
        config = with_settings(preset_config(preset), settings)
        with ExitStack() as watching:
            watchers = []
            if rollout_env is not None:
                watchers.append(
                    watching.enter_context(
                        validate_by_rollouts(
                            ROLL_OUT,
                            env=rollout_env,
                            every=rollout_every,
                            episodes=rollout_episodes,
                            store=locations[0],
                            config=config,
                            backbone=backbone,
                        )
                    )
                )
            report = train(
                locations,
                out,
                config,
                resume=resume,
                weights=_parse_weights(weights),
                device=device,
                track=track or (),
                watchers=watchers,
            )
        if report.is_primary:
            typer.echo(report.summary())
            write_report([out], out / "report.html")
            typer.echo(f"wrote {out / 'report.html'}")
            for watcher in watchers:
                for failure in watcher.failures:
                    typer.echo(f"warning: {failure}", err=True)


def _parse_weights(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise ConfigError(f"--weights {text}: want a number a store, as in 2,1") from error
