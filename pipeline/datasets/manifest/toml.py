"""Plain values as the text of a TOML file: what comes out is what `tomllib` reads back."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


def toml_text(content: Mapping[str, Any]) -> str:
    """Return values first, then a `[table]` for each mapping and `[[table]]`s for lists of them.

    Args:
        content: strings, finite numbers, booleans, lists and mappings of these; no None.
    """
    lines, blocks = [], []
    for key, value in content.items():
        if isinstance(value, Mapping):
            blocks += [f"\n[{_key(key)}]", *_lines(value)]
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            for entry in value:
                blocks += [f"\n[[{_key(key)}]]", *_lines(entry)]
        else:
            lines += _lines({key: value})
    return "\n".join([*lines, *blocks]) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in table.items()]


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(_lines(value)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(entry) for entry in value) + "]"
    # JSON and TOML agree on strings, once non-ASCII text is left as it is, and on numbers; DEL is
    # the one character that JSON leaves and TOML forbids.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
