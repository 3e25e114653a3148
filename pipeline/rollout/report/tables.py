"""Tables, and the mark of a run's colour, alike in every section.

Knows elements; nothing about reports.
"""

from collections.abc import Sequence
from typing import Final

from pipeline.rollout.report.markup import Child, Markup, element

NUM_COLOURS: Final = 8  # of the style sheet


def table(headings: Sequence[Child], rows: Sequence[Markup], kind: str) -> Markup:
    """Return a table that scrolls by itself where the page is narrower than it.

    Args:
        headings: of the columns; none for a table without a head.
        rows: `tr` elements.
        kind: class, for the style sheet.
    """
    cells = [element("th", heading, scope="col") for heading in headings]
    head = element("thead", element("tr", cells)) if headings else None
    body = element("tbody", rows)
    return element("div", element("table", head, body, class_=kind), class_="scroll", tabindex=0)


def row(heading: Child, cells: Sequence[Child], kind: str | None = None) -> Markup:
    """Return a table's row: its heading, then its cells."""
    found = [element("td", cell) for cell in cells]
    return element("tr", element("th", heading, scope="row"), found, class_=kind)


def swatch(colour: int) -> Markup:
    """Return the mark of a run's colour."""
    return element("i", class_=f"swatch {colour_class(colour)}")


def colour_class(index: int) -> str:
    """Return the class of a run's colour; beyond the palette its lines are dashed."""
    dashed = " dashed" if index >= NUM_COLOURS else ""
    return f"s{index % NUM_COLOURS}{dashed}"


def run_headings(labels: Sequence[str]) -> list[Markup]:
    """Return the heads of columns that stand for runs, in order."""
    return [
        element("span", swatch(colour), label, class_="run") for colour, label in enumerate(labels)
    ]


def percent(share: float) -> str:
    """Return a share to read."""
    return f"{100 * share:.0f} %"


def folded(summary: str, *content: Child, is_open: bool = False) -> Markup:
    """Return something that a click unfolds."""
    return element("details", element("summary", summary), content, open=is_open)
