"""Pydantic's errors of a manifest in one line: key, expected, found, what to do."""

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
_MODELS: Final[Mapping[str, type[BaseModel]]] = {
    "views": ViewSource,
    "state": ArraySource,
    "action": ArraySource,
    "sources": DataSource,
    "episodes": EpisodeFilter,
    "splits": Splits,
}


def first_problem(error: ValidationError, content: Mapping[str, Any], top: type[BaseModel]) -> str:
    """Describe the first problem of the manifest `content` that `top` refuses; count the others."""
    problems = error.errors()
    keys = [_key(problem, content) for problem in problems]
    # The branches of a union are reported one by one for the same key.
    more = f" ({len(set(keys)) - 1} more to correct)" if len(set(keys)) > 1 else ""
    text = _text(problems[0], top)
    return f"{keys[0]}: {text}{more}" if keys[0] else f"{text}{more}"


def _key(problem: ErrorDetails, content: Mapping[str, Any]) -> str:
    """Return the key as in the file, without pydantic's names of a union's branches."""
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
    found = repr(problem["input"])[:200]
    return f"expected {wanted[0].lower()}{wanted[1:]}, found {found}; correct it, {MANUAL}"
