"""The whole configuration of the runs as one table, with what differs marked.

Knows nested settings; nothing about what they mean.
"""

import json
from collections.abc import Mapping, Sequence

from pipeline.rollout.report.contents import RunContents
from pipeline.rollout.report.markup import Markup, element
from pipeline.rollout.report.tables import row, run_headings, table

ABSENT = "\N{EN DASH}"  # shown where another kind of setting does not have that field


def configuration(runs: Sequence[RunContents]) -> Markup:
    """Return every field of every run's `run.json`, a column a run."""
    flat = [flatten(run.description.model_dump(mode="json")) for run in runs]
    names = list(dict.fromkeys(name for fields in flat for name in fields))
    rows = [_row(name, [fields.get(name, ABSENT) for fields in flat]) for name in names]
    headings = ["Field", *run_headings([run.label for run in runs])]
    return element(
        "div", _filter(len(runs)), table(headings, rows, "config"), class_="configuration"
    )


def flatten(content: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return nested settings as `group.field` and text; a list of plain values stays one field."""
    fields: dict[str, str] = {}
    for key, value in content.items():
        inner = value
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            inner = {str(index): item for index, item in enumerate(value)}
        if isinstance(inner, dict) and inner:
            fields |= flatten(inner, f"{prefix}{key}.")
        else:
            fields[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return fields


def _row(name: str, values: Sequence[str]) -> Markup:
    return row(name, values, "same" if len(set(values)) == 1 else "differs")


def _filter(num_runs: int) -> Markup | None:
    if num_runs == 1:
        return None
    box = element("input", type="checkbox", class_="only-differing")
    return element("label", box, " Only fields that differ")
