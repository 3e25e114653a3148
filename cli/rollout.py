"""`vla-rollout`: run a trained policy live and measure its success."""

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from cli.exits import exit_on_vla_error
from cli.options import (
    CameraCheckOption,
    CheckpointOption,
    DeviceOption,
    EncoderOption,
    EvaluationsOption,
)
from pipeline.errors import ConfigError
from pipeline.rollout.envs.base import FIRST_ROLLOUT_SEED
from pipeline.rollout.play.loop import RolloutConfig, roll_out
from pipeline.rollout.report.page import write_report

main = typer.Typer(add_completion=False)


@main.command()
def rollout(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    env: Annotated[str, typer.Option(help="Environment, as metaworld/drawer-open-v3.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes, each with its own seed.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the first episode.")] = FIRST_ROLLOUT_SEED,
    envs: Annotated[int, typer.Option(min=1, help="Environments at once; same results.")] = 1,
    checkpoint: CheckpointOption = "latest",
    videos: Annotated[
        str, typer.Option(help="all, failed, none, or how many of the first episodes.")
    ] = "1",
    render_size: Annotated[
        int,
        typer.Option(help="Pixels a side of the pictures, before they are resized to 256."),
    ] = 256,
    camera_check: CameraCheckOption = "refuse",
    override_gate: Annotated[
        bool,
        typer.Option("--override-gate", help="Move although encoder or control rate differ."),
    ] = False,
    evaluations: EvaluationsOption = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Control steps an episode; default the simulator's.")
    ] = None,
    encoder: EncoderOption = None,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder for result.json; default RUN/rollouts/ENV.")
    ] = None,
) -> None:
    """Roll a trained policy out on unseen seeds, through the encoder of its training."""
    with exit_on_vla_error("the same command resumes after the finished episodes"):
        folder = out or run / "rollouts" / env.replace("/", "-")
        result = roll_out(
            RolloutConfig(
                run=run,
                env=env,
                out=folder,
                episodes=episodes,
                first_seed=seed,
                num_envs=envs,
                checkpoint=checkpoint,
                videos=_parse_videos(videos),
                render_size=render_size,
                camera_check=camera_check,
                override_gate=override_gate,
                nfe=evaluations,
                max_steps=max_steps,
                encoder=encoder,
                device=device,
            )
        )
        typer.echo(f"{result.summary()}\nwrote {folder / 'result.json'}")
        for alarm in result.alarms():
            typer.secho(f"ATTENTION: {alarm}", fg="red", bold=True, err=True)
        if folder.resolve().is_relative_to(run.resolve()):
            write_report([run], run / "report.html")
            typer.echo(f"wrote {run / 'report.html'}; next: look at it, or vla-serve {run}")


def _parse_videos(text: str) -> Literal["all", "failed", "none"] | int:
    if text.isdecimal():
        return int(text)
    if text in ("all", "failed", "none"):
        return cast(Literal["all", "failed", "none"], text)
    raise ConfigError(f"--videos {text}: want all, failed, none or a number")
