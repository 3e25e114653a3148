"""`vla-rollout`: run a trained policy live and measure its success."""

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
from pipeline.rollout.envs.base import FIRST_ROLLOUT_SEED
from pipeline.rollout.play.loop import RolloutConfig, check_instructions, roll_out
from pipeline.rollout.report.instructions import measure_effect
from pipeline.rollout.report.page import write_report

main = typer.Typer(add_completion=False)


@main.command()
def rollout(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    env: Annotated[
        list[str],
        typer.Option(help="Environment, e.g. metaworld/drawer-open-v3, or suite; repeatable."),
    ],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes, per environment.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the first episode.")] = FIRST_ROLLOUT_SEED,
    envs: Annotated[int, typer.Option(min=1, help="Parallel environments; the same results.")] = 1,
    checkpoint: CheckpointOption = "latest",
    videos: Annotated[str, typer.Option(help="all, failed, none, or N of each environment.")] = "1",
    encoder: EncoderOption = None,
    device: DeviceOption = "auto",
    instruction: Annotated[str | None, typer.Option(help="Default: the environment's own.")] = None,
    instruction_check: Annotated[
        bool,
        typer.Option(
            "--instruction-check", help="Repeat with another and an empty instruction, and compare."
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder; default RUN/rollouts/ENV.")] = None,
    settings: SettingsOption = None,
) -> None:
    """Roll a trained policy out on unseen seeds, through the encoder of its training."""
    with exit_on_vla_error("the same command resumes after the finished episodes"):
        name = "+".join(env).replace("/", "-").encode()[:200]  # file systems take 255 bytes
        folder = out or run / "rollouts" / name.decode(errors="ignore")
        config = build_config(
            RolloutConfig,
            settings,
            run=run,
            envs=tuple(env),
            out=folder,
            episodes=episodes,
            first_seed=seed,
            num_envs=envs,
            checkpoint=checkpoint,
            videos=videos,
            encoder=encoder,
            device=device,
            instruction=instruction,
        )
        results = check_instructions(config) if instruction_check else (roll_out(config),)
        alarms = [alarm for result in results for alarm in result.alarms()]
        for result in results:
            typer.echo(result.summary())
        for effect in (measure_effect(results[0], other) for other in results[1:]):
            typer.echo(effect.line())
            alarms += filter(None, [effect.alarm])
        typer.echo(f"wrote {folder / 'result.json'}")
        for alarm in alarms:
            typer.secho(f"WARNING: {alarm}", fg="red", bold=True, err=True)
        if folder.resolve().is_relative_to(run.resolve()):
            write_report([run], run / "report.html")
            typer.echo(f"wrote {run / 'report.html'}; next: open it, or vla-serve {run}")
