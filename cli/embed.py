"""`vla-embed`: encode every frame of a dataset once and cache the features."""

from typing import Annotated

import typer

from cli.command import (
    DATASET,
    LOCATION,
    DeviceOption,
    SettingsOption,
    build_config,
    exit_on_vla_error,
)
from pipeline.datasets.manifest.draft import manifest_next_to
from pipeline.features.encode.config import EmbedConfig, Part
from pipeline.features.encode.embed import embed_dataset
from pipeline.storage.location import parse_location
from pipeline.training.presets import preset_for
from policy.encoders.registry import DEFAULT_ENCODER, ENCODERS, TEXT_ENCODERS

main = typer.Typer(add_completion=False)


@main.command()
def embed(
    dataset: Annotated[str, typer.Argument(help=DATASET)],
    store: Annotated[str, typer.Option(help=f"Feature store to create or resume{LOCATION}")],
    encoder: Annotated[
        str, typer.Option(help=f"Hub repository, local folder, or one of {', '.join(ENCODERS)}.")
    ] = DEFAULT_ENCODER,
    features: Annotated[
        str | None, typer.Option(help="As pooled,grid; default: the encoder's own.")
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(help=f"For instructions: repository, folder, or {', '.join(TEXT_ENCODERS)}."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Commit hash (40 digits) of a Hugging Face repository.")
    ] = None,
    device: DeviceOption = "auto",
    episodes: Annotated[
        str | None, typer.Option(help="Without a manifest: 10 for the first ten, or 0-9,12.")
    ] = None,
    variants: Annotated[int, typer.Option(min=0, max=64, help="Augmented variants per frame.")] = 0,
    units: Annotated[
        str | None, typer.Option(help="i/n: embed only the i-th of n parts, e.g. in a job array.")
    ] = None,
    ray_workers: Annotated[
        int | None, typer.Option(min=1, help="Number of Ray actors; connects to RAY_ADDRESS.")
    ] = None,
    settings: SettingsOption = None,
) -> None:
    """Encode every frame of a dataset once and cache the features. Resumable."""
    with exit_on_vla_error("the same command resumes from here"):
        location = parse_location(store)
        config = build_config(
            EmbedConfig,
            settings,
            manifest=manifest_next_to(location, dataset, episodes),
            store=location,
            encoder=encoder,
            features=tuple(features.split(",")) if features else (),
            text_encoder=text_encoder,
            revision=revision,
            device=device,
            num_variants=variants,
            part=None if units is None else Part.parse(units),
            ray_workers=ray_workers,
        )
        report = embed_dataset(config)
        typer.echo(report.summary())
        if not report.remainder:
            preset = preset_for(report.features, has_instructions=report.has_instructions)
            typer.echo(f"wrote {store}; next: vla-train {store} --preset {preset} --out runs/first")
