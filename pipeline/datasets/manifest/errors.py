"""What pydantic finds wrong with a manifest, in one line: key, expected, found, what to do."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.datasets.manifest.parts import (
    ArraySource,
    DataSource,
    EpisodeFilter,
    Splits,
    ViewSource,
)

MANUAL: Final = "data_manifests/README.md explains every field"
_MAX_SHOWN: Final = 200  # characters of a value
_MODELS: Final[Mapping[str, type[BaseModel]]] = {
    "views": ViewSource,
    "state": ArraySource,
    "action": ArraySource,
    "sources": DataSource,
    "episodes": EpisodeFilter,
    "splits": Splits,
}


def first_problem(error: ValidationError, content: Mapping[str, Any], top: type[BaseModel]) -> str:
    """Say the first thing that is wrong, and how many more there are.

    Args:
        error: what `top` said of `content`.
        content: the manifest's plain values.
        top: the model of the whole manifest.
    """
    problems = error.errors()
    places = [_place(problem, content) for problem in problems]
    # The branches of a union complain one by one about the same place.
    more = f" ({len(set(places)) - 1} more to correct)" if len(set(places)) > 1 else ""
    text = _text(problems[0], top)
    return f"{places[0]}: {text}{more}" if places[0] else f"{text}{more}"


def _place(problem: ErrorDetails, content: Mapping[str, Any]) -> str:
    """Name the key as the file has it, without pydantic's names of a union's branches."""
    key: str = ""
    node: Any = content
    for part in problem["loc"]:
        if isinstance(part, int):
            if isinstance(node, list | tuple) and part < len(node):
                key, node = f"{key}[{part}]", node[part]
        elif isinstance(node, Mapping) and (part in node or problem["type"] == "missing"):
            key, node = f"{key}.{part}" if key else part, node.get(part)
    return key


def _text(problem: ErrorDetails, top: type[BaseModel]) -> str:
    if problem["type"] == "missing":
        return f"expected this key, found none; add it, {MANUAL}"
    if problem["type"] == "extra_forbidden":
        tables = [part for part in problem["loc"][:-1] if isinstance(part, str)]
        model = _MODELS[tables[-1]] if tables else top
        names = ", ".join(field.alias or name for name, field in model.model_fields.items())
        hint = "; a key below a [table] line belongs to that table" if tables else ""
        return f"expected one of {names}, found an unknown key; rename or remove it{hint}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    wanted = problem["msg"].removeprefix("Input should be ")
    wanted = wanted[0].lower() + wanted[1:]
    return f"expected {wanted}, found {_brief(problem['input'])}; correct it, {MANUAL}"


def _brief(value: Any) -> str:
    """Return how Python writes a value, cut off where it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested deep, an integer of thousands of digits
        return f"a value of type {type(value).__name__} that is too long to show"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
