"""`vla-train`: fit the trainable part of a policy on cached features."""

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from pydantic import AfterValidator, BeforeValidator

from cli.command import LOCATION, DeviceOption, build_config, exit_on_vla_error
from pipeline.errors import ConfigError
from pipeline.rollout.envs.base import FIRST_ROLLOUT_SEED
from pipeline.rollout.play.validation import ValidationConfig, validate_by_rollouts
from pipeline.rollout.report.page import write_report
from pipeline.storage.location import parse_location
from pipeline.training.config import with_settings
from pipeline.training.presets import PRESETS, preset_config
from pipeline.training.run.tracking import TRACKERS
from pipeline.training.seeds import train_seeds
from pipeline.training.session import train
from policy.spec import FrozenModel

main = typer.Typer(add_completion=False)


class DataConfig(FrozenModel):
    """How the stores are read, as `--set data.FIELD=VALUE` changes it."""

    weights: Annotated[tuple[float, ...], BeforeValidator(lambda text: text.split(","))] = ()
    """How often a step of each store is drawn, as `2,1`; none: equally often."""
    cache: Annotated[Path, AfterValidator(Path.expanduser)] | None = None
    """Folder for local copies of remote or compressed stores; none: in the user's cache."""


@main.command(name="train")
def train_command(
    stores: Annotated[
        list[str], typer.Argument(help=f"Feature stores of the same encoder and robot{LOCATION}")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run to create.")],
    preset: Annotated[str, typer.Option(help=f"Preset: {', '.join(PRESETS)}.")] = "proj96",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Set one field, e.g. steps=2000, agent.head.n_layer=6, data.weights=2,1, "
            "data.cache=FOLDER, rollout.every=2000 or rollout.encoder=PATH.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in OUT; --set steps=N adds steps.")
    ] = False,
    init_from: Annotated[
        Path | None, typer.Option(help="Run whose averaged weights initialize the new run.")
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="Train a run per seed at once, e.g. 0,1,2, in OUT/seed-0 and so on.")
    ] = "",
    device: DeviceOption = "auto",
    rollout_env: Annotated[
        str | None, typer.Option(help="Environment to roll checkpoints out in, while training.")
    ] = None,
    track: Annotated[
        list[str] | None, typer.Option(help=f"Also log to {' or '.join(TRACKERS)} (an extra each).")
    ] = None,
) -> None:
    """Train a policy on cached features."""
    with exit_on_vla_error("add --resume to resume from the last checkpoint"):
        locations = [parse_location(store) for store in stores]
        groups: dict[str, list[str]] = {"data": [], "rollout": [], "": []}
        for setting in settings or ():
            group, _, field = setting.partition(".")
            groups[group if group in groups else ""].append(field if group in groups else setting)
        config = with_settings(preset_config(preset), groups[""])
        data = build_config(DataConfig, groups["data"], group="data")
        if groups["rollout"] and rollout_env is None:
            raise ConfigError(f"--set rollout.{groups['rollout'][0]}: expected --rollout-env")
        train_run = partial(
            train,
            locations,
            resume=resume,
            init_from=init_from,
            weights=data.weights,
            cache=data.cache,
            device=device,
            track=track or (),
        )
        failures: Sequence[str] = ()
        if seeds:
            if rollout_env is not None:
                raise ConfigError("--seeds: expected no --rollout-env; roll the finished runs out")
            if any(setting.startswith("seed=") for setting in groups[""]):
                raise ConfigError("--seeds: expected no --set seed=; name that seed too")
            reports = train_seeds(train_run, out, config, _parse_seeds(seeds))
        elif rollout_env is None:
            reports = [train_run(out, config)]
        else:
            rollout = build_config(
                ValidationConfig,
                groups["rollout"],
                group="rollout",
                run=out,
                out=out / "rollouts",
                envs=(rollout_env,),
                device=device,
                # The process of a rollout may start no others, and holds one checkpoint.
                num_envs=1,
                checkpoint="latest",
                first_seed=FIRST_ROLLOUT_SEED,
            )
            with closing(validate_by_rollouts(rollout, locations[0], config)) as watcher:
                reports = [train_run(out, config, watchers=[watcher])]
            failures = watcher.failures
        if not reports[0].is_primary:
            return
        runs = [report.run for report in reports]
        for report in reports:
            typer.echo(report.summary())
        write_report(runs, out / "report.html")
        typer.echo(
            f"wrote {out / 'report.html'}; next: vla-rollout {runs[0]} --env ENV, or "
            f"vla-serve {runs[0]}"
        )
        for failure in failures:
            typer.echo(f"warning: {failure}", err=True)


def _parse_seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds {text}: expected whole numbers, such as 0,1,2") from error
