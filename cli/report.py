"""`vla-report`: one page about one or several training runs."""

from pathlib import Path
from typing import Annotated

import typer

from cli.command import exit_on_vla_error
from pipeline.rollout.report.page import MEDIA_LIMIT, write_report

BYTES_PER_MB = 1_000_000

main = typer.Typer(add_completion=False)


@main.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of training runs.")],
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file; default RUN/report.html, or report.html for several runs."),
    ] = None,
    media_mb: Annotated[
        int, typer.Option(min=0, help="Maximum size of embedded images and videos in megabytes.")
    ] = MEDIA_LIMIT // BYTES_PER_MB,
) -> None:
    """Write one HTML page about runs, side by side: no network, no other file."""
    with exit_on_vla_error("no page was written"):
        page = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
        left_out = write_report(runs, page, media_limit=media_mb * BYTES_PER_MB)
        omitted = f", {len(left_out)} images and videos left out" if left_out else ""
        typer.echo(f"wrote {page} ({page.stat().st_size / BYTES_PER_MB:.1f} MB{omitted})")
