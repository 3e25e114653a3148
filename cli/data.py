"""`vla-data`: tools for datasets, feature stores and runs."""

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from cli.command import DATASET, LOCATION, DeviceOption, EncoderOption, exit_on_vla_error
from pipeline.datasets.check.dataset import check_dataset
from pipeline.datasets.manifest.draft import draft_manifest
from pipeline.errors import ConfigError
from pipeline.features.identity.verify import verify_store
from pipeline.features.store.integrity import verify_checksums
from pipeline.rollout.envs.base import DEFAULT_RENDER_SIZE
from pipeline.rollout.play.record import RecordConfig, record_dataset
from pipeline.storage.local import write_atomically
from pipeline.storage.location import parse_location
from pipeline.training.run.describe import describe

FOUND_SOMETHING: Final = 1

main = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Datasets, stores and runs: record, check, draft, describe, verify.",
)


@main.command()
def record(
    env: Annotated[str, typer.Option(help="Environment, e.g. metaworld/drawer-open-v3, or suite.")],
    episodes: Annotated[int, typer.Option(min=1, help="Demonstrations per environment.")],
    out: Annotated[Path, typer.Option(help="Folder to create or resume.")],
    views: Annotated[str, typer.Option(help="Cameras, comma-separated, in the policy's order.")],
    first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first episode.")] = 0,
    render_size: Annotated[
        int, typer.Option(help="Side length of rendered images in pixels; recorded at 256x256.")
    ] = DEFAULT_RENDER_SIZE,
) -> None:
    """Record a simulator's scripted expert as an HDF5 dataset. Resumable."""
    with exit_on_vla_error("the same command resumes from here"):
        config = RecordConfig(
            env=env,
            views=tuple(name.strip() for name in views.split(",") if name.strip()),
            episodes=episodes,
            out=out,
            render_size=render_size,
            first_seed=first_seed,
        )
        typer.echo(record_dataset(config).summary())


@main.command()
def check(
    dataset: Annotated[str, typer.Argument(help=DATASET)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="PNG file to write with first, middle and last frames.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes whose frames are read.")] = 5,
    is_all: Annotated[bool, typer.Option("--all", help="Read the frames of all episodes.")] = False,
) -> None:
    """Check a dataset before hours of compute. Exit code 1 if something is found."""
    with exit_on_vla_error("nothing was changed"):
        report = check_dataset(dataset, episodes=None if is_all else episodes, sheet=sheet)
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.table())
    if not as_json and all(finding.severity != "error" for finding in report.findings):
        typer.echo(f"next: vla-embed {dataset} --store my.zarr")
    if not report.is_clean:
        raise typer.Exit(FOUND_SOMETHING)


@main.command()
def init(
    path: Annotated[str, typer.Argument(help="Dataset: folder, file or hf://owner/name.")],
    out: Annotated[Path | None, typer.Option(help="File to write; default: print it.")] = None,
) -> None:
    """Draft a manifest of a dataset, to edit by hand."""
    with exit_on_vla_error("nothing was written"):
        if out is not None and out.exists():
            raise ConfigError(f"{out}: expected a new file, found an existing one; choose another")
        draft = draft_manifest(path)
        if out is None:
            typer.echo(draft.text, nl=False)
        else:
            write_atomically(out, draft.text.encode())
            for missing in draft.missing:
                typer.echo(f"to complete: {missing}")
            typer.echo(f"wrote {out}; next: vla-data check {out}")


@main.command()
def info(
    path: Annotated[str, typer.Argument(help=f"A run, a dataset, or a feature store{LOCATION}")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe a dataset, a feature store or a training run."""
    with exit_on_vla_error("nothing was changed"):
        fields = describe(path)
        if as_json:
            typer.echo(json.dumps(fields, indent=2))
        else:
            width = max(map(len, fields))
            typer.echo("\n".join(f"{name:<{width}}  {value}" for name, value in fields.items()))


@main.command()
def verify(
    store: Annotated[str, typer.Argument(help=f"A feature store{LOCATION}")],
    manifest: Annotated[
        Path | None, typer.Option(help="Manifest of the dataset; default: the one in the store.")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="Number of steps to encode again.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random steps.")] = 0,
    checksums: Annotated[
        bool, typer.Option("--checksums", help="Only compare checksums, without encoding.")
    ] = False,
    encoder: EncoderOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Verify that a store contains its encoder's features of its data. Exit code 1 if not.

    Encodes random steps of the dataset again, or compares every file with its checksum.
    """
    with exit_on_vla_error("nothing was changed"):
        location = parse_location(store)
        if checksums:
            damage = verify_checksums(location)
            typer.echo(damage.summary())
            is_good = not damage.damaged
        else:
            report = verify_store(
                location, manifest, sample=sample, seed=seed, encoder=encoder, device=device
            )
            typer.echo(report.summary())
            is_good = report.is_within_tolerance
    if not is_good:
        raise typer.Exit(FOUND_SOMETHING)
