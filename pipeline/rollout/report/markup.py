"""Building HTML and SVG whose text cannot break out of its place.

Knows elements and escaping; nothing about reports. Whatever is not `Markup` already is escaped, so
that a name read from a file shows as text.
"""

import html
from collections.abc import Iterable
from typing import Final

VOID: Final = {"meta", "link", "input", "br", "img"}  # HTML's elements without an end tag


class Markup(str):
    """Text that is HTML already: from `element`, or from our own files."""

    __slots__ = ()


Child = str | int | Iterable["Child"] | None
Attribute = str | int | float | bool | None


def element(name: str, *children: Child, **attributes: Attribute) -> Markup:
    """Return one element.

    Args:
        name: tag, as `td`.
        children: markup, text to escape, numbers, nested sequences of them, or None for nothing.
        attributes: `class_` gives `class`, `data_x` gives `data-x`; None and False leave the
            attribute out, True gives it without a value.
    """
    opened = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{opened}>")
    return Markup(f"<{name}{opened}>{join(children)}</{name}>")


def join(children: Child) -> Markup:
    """Return children as markup, one after the other; text is escaped."""
    if children is None:
        return Markup()
    if isinstance(children, Markup):
        return children
    if isinstance(children, str | int):
        return Markup(escape(str(children)))
    return Markup("".join(join(child) for child in children))


def escape(text: str) -> str:
    """Escape text for an element's body or a quoted attribute; lone surrogates become `?`."""
    return html.escape(text.encode("utf-8", "replace").decode(), quote=True)


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.removesuffix("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f' {name}="{escape(text)}"'
