"""`vla-embed`: encode every frame of a dataset once and cache the features."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cli.exits import exit_on_vla_error
from cli.options import LOCATION
from pipeline.errors import FailedUnitsError
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.encode.executor_choice import ExecutorConfig
from pipeline.features.encode.executors import ExecutorName
from pipeline.features.encode.parts import Part
from pipeline.features.store.attributes import Codec
from pipeline.features.store.units import SHARD_ABOVE
from pipeline.storage.location import parse_location
from policy.encoders.siglip2 import DEFAULT_REPOSITORY, STAND_IN
from policy.spec import ComputeDtype

main = typer.Typer(add_completion=False)


@main.command()
def embed(
    manifest: Annotated[Path, typer.Argument(help="A TOML file as in data_manifests/.")],
    store: Annotated[str, typer.Option(help=f"Feature store to create or go on with{LOCATION}")],
    backbone: Annotated[
        str, typer.Option(help="Hub repository, local folder, or `stand-in` (not pretrained).")
    ] = DEFAULT_REPOSITORY,
    revision: Annotated[
        str | None, typer.Option(help="40-hex commit of another hub repository.")
    ] = None,
    dtype: Annotated[
        ComputeDtype | None,
        typer.Option(help="The tower's dtype; default bfloat16 where the hardware has it."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where the tower runs, as torch names it.")] = "cpu",
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Fuse the tower with torch.compile: another engine.")
    ] = False,
    variants: Annotated[
        int, typer.Option(min=0, max=64, help="Augmented variants to keep of every frame.")
    ] = 0,
    codec: Annotated[
        Codec, typer.Option(help="Compression of the features; blosc is zstd after a bit shuffle.")
    ] = "none",
    shard_above: Annotated[
        int,
        typer.Option(min=0, help="Steps above which a new store has 16,384 steps a file."),
    ] = SHARD_ABOVE,
    executor: Annotated[
        ExecutorName, typer.Option(help="Who encodes: this process, local processes, or Ray.")
    ] = "in-process",
    workers: Annotated[
        int, typer.Option(min=1, help="Processes or Ray actors, each with its own tower.")
    ] = 1,
    cpus_per_worker: Annotated[
        int | None, typer.Option(min=1, help="Threads of each; default: this process's, shared.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, help="GPUs Ray gives each; default 1 on a GPU device.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster, or `auto`; default: a Ray of its own.")
    ] = None,
    units: Annotated[
        str | None, typer.Option(help="i/n: only the i-th of n parts, beside the other parts.")
    ] = None,
) -> None:
    """Encode every frame of a dataset once and cache the features. Resumable."""
    with exit_on_vla_error("the same command goes on from here"), _every_failed_unit():
        if backbone == STAND_IN:
            typer.echo(
                "the stand-in encoder is NOT pretrained: good for trying the whole way out, not "
                "for judging SigLIP2",
                err=True,
            )
        report = embed_dataset(
            EmbedConfig(
                manifest=manifest,
                store=parse_location(store),
                backbone=backbone,
                revision=revision,
                compute_dtype=dtype,
                device=device,
                compiled=compiled,
                num_variants=variants,
                codec=codec,
                shard_above=shard_above,
                executor=ExecutorConfig(
                    name=executor,
                    workers=workers,
                    cpus_per_worker=cpus_per_worker,
                    gpus_per_worker=gpus_per_worker,
                    address=address,
                ),
                part=None if units is None else Part.parse(units),
            )
        )
        typer.echo(report.summary())


@contextmanager
def _every_failed_unit() -> Iterator[None]:
    """List the failed units, a line each, before the error says how many there are."""
    try:
        yield
    except FailedUnitsError as error:
        for reason in error.reasons:
            typer.echo(reason, err=True)
        raise
