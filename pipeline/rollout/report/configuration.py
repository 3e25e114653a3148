"""The whole configuration of the runs, field by field; `templates/configuration.html`."""

import json
from collections.abc import Mapping, Sequence
from typing import Final

from pipeline.rollout.report.contents import RunContents

ABSENT: Final = "\N{EN DASH}"  # where a run has no such field


def configuration(runs: Sequence[RunContents]) -> dict[str, object]:
    """Return every field of every run's `run.json`, with one value per run."""
    flat = [flatten(run.description.model_dump(mode="json")) for run in runs]
    names = dict.fromkeys(name for fields in flat for name in fields)
    return {"fields": {name: [fields.get(name, ABSENT) for fields in flat] for name in names}}


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
