"""`vla-train`: fit the trainable part of a policy on cached features."""

from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from cli.exits import exit_on_vla_error
from cli.options import LOCATION, DeviceOption
from pipeline.errors import ConfigError
from pipeline.rollout.play.loop import RolloutConfig
from pipeline.rollout.play.validation import RolloutValidation, validate_by_rollouts
from pipeline.rollout.report.page import write_report
from pipeline.storage.local import user_cache
from pipeline.storage.location import parse_location
from pipeline.training.config import with_settings
from pipeline.training.presets import PRESETS, preset_config
from pipeline.training.run.tracking import TRACKERS
from pipeline.training.session import train

main = typer.Typer(add_completion=False)


@main.command(name="train")
def train_command(
    stores: Annotated[
        list[str], typer.Argument(help=f"Feature stores of the same encoder and robot{LOCATION}")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run to create.")],
    preset: Annotated[str, typer.Option(help=f"Preset: {', '.join(PRESETS)}.")] = "proj96",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Set one field, e.g. steps=2000 or agent.head.n_layer=6."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in OUT; --set steps=N adds steps.")
    ] = False,
    init_from: Annotated[
        Path | None, typer.Option(help="Run whose averaged weights initialize the new run.")
    ] = None,
    weights: Annotated[
        str,
        typer.Option(help="Sampling weight per store, e.g. 2,1; default: all equal."),
    ] = "",
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for local copies of remote or compressed stores; default: in ~/.cache."
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="Path or name of the encoder for --rollout-env, if it has moved."),
    ] = None,
    device: DeviceOption = "auto",
    rollout_env: Annotated[
        str | None,
        typer.Option(
            help="Environment for rollouts of checkpoints, e.g. metaworld/drawer-open-v3."
        ),
    ] = None,
    rollout_every: Annotated[
        int, typer.Option(min=1, help="Steps between rollouts; a multiple of checkpoint_every.")
    ] = 5_000,
    rollout_episodes: Annotated[
        int, typer.Option(min=1, help="Number of episodes per rollout.")
    ] = 5,
    track: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Also log to {' or '.join(TRACKERS)}; install the extra of the same name."
        ),
    ] = None,
) -> None:
    """Train a policy on cached features."""
    with exit_on_vla_error("add --resume to resume from the last checkpoint"):
        if encoder is not None and rollout_env is None:
            raise ConfigError("--encoder needs --rollout-env: training reads cached features")
        locations = [parse_location(store) for store in stores]
        config = with_settings(preset_config(preset), settings or ())
        validation: AbstractContextManager[RolloutValidation | None] = nullcontext()
        if rollout_env is not None:
            rollout = RolloutConfig(
                run=out,
                out=out / "rollouts",
                envs=(rollout_env,),
                episodes=rollout_episodes,
                videos="none",
                encoder=encoder,
                device=device,
            )
            validation = closing(
                validate_by_rollouts(
                    rollout, every=rollout_every, store=locations[0], config=config
                )
            )
        with validation as watcher:
            report = train(
                locations,
                out,
                config,
                resume=resume,
                init_from=init_from,
                weights=_parse_weights(weights),
                cache=cache_dir or user_cache("features"),
                device=device,
                track=track or (),
                watchers=[watcher] if watcher else (),
            )
        if report.is_primary:
            typer.echo(report.summary())
            write_report([out], out / "report.html")
            typer.echo(
                f"wrote {out} and {out / 'report.html'}; next: vla-rollout {out} --env ENV, or "
                f"vla-serve {out}"
            )
            for failure in watcher.failures if watcher else ():
                typer.echo(f"warning: {failure}", err=True)


def _parse_weights(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise ConfigError(
            f"--weights {text}: expected one number per store, such as 2,1"
        ) from error
