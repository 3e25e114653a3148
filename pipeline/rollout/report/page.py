"""The whole page: sections, style sheet, script, and the rule that nothing is ever loaded.

Knows the sections; writes one file. The page holds no time of its making: the same files give the
same bytes.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pipeline.errors import ConfigError
from pipeline.rollout.report.comparison import comparison
from pipeline.rollout.report.configuration import configuration
from pipeline.rollout.report.contents import RunContents, read_contents
from pipeline.rollout.report.curves import curves
from pipeline.rollout.report.markup import Markup, element
from pipeline.rollout.report.media import MediaBudget
from pipeline.rollout.report.overview import facts, headline, notices, success_table
from pipeline.rollout.report.rollouts import rollouts
from pipeline.storage.local import write_atomically

MEDIA_LIMIT: Final = 32_000_000  # bytes of pictures and films; still quick to open and to send
STYLE: Final = Path(__file__).with_name("page.css")
SCRIPT: Final = Path(__file__).with_name("page.js")


def write_report(
    folders: Sequence[Path], out: Path, *, media_limit: int = MEDIA_LIMIT
) -> list[Path]:
    """Write the page of one or several runs, side by side, to the file `out`.

    Args:
        folders: of the runs.
        out: the HTML file; replaced whole if it is there.
        media_limit: bytes of pictures and films that may go into the page.

    Returns:
        The pictures and films for which there was no room.

    Raises:
        RunError: a folder holds no run, or a file in it is damaged.
        ConfigError: `out` is a folder.
        OSError: a file cannot be read, or `out` cannot be written.
    """
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; name a file, as {out / 'report.html'}")
    budget = MediaBudget(media_limit)
    content = render_page(read_contents(folders), budget)
    write_atomically(out, content.encode())
    return budget.left_out


def render_page(runs: Sequence[RunContents], budget: MediaBudget) -> str:
    """Return the page's HTML."""
    style, script = Markup(STYLE.read_text("utf-8")), Markup(SCRIPT.read_text("utf-8"))
    rules = (
        "default-src 'none'; img-src data:; media-src data:; "
        f"style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=rules),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("title", f"{headline(runs)} \N{EN DASH} vla-report"),
        element("link", rel="icon", href="data:,"),
        element("style", style),
    )
    sections = [
        ("Success", success_table(runs)),
        ("Comparison", comparison(runs)),
        ("Training", curves(runs)),
        ("Rollouts", rollouts(runs, budget)),
        ("Configuration", configuration(runs)),
    ]
    body = element(
        "body",
        element(
            "header",
            element("p", "vla-report", class_="kind"),
            element("h1", headline(runs)),
            notices(runs),
            facts(runs),
        ),
        element(
            "main",
            [
                element("section", element("h2", name), content)
                for name, content in sections
                if content is not None
            ],
        ),
        element("script", script),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
