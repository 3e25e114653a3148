"""openpi's wire format: msgpack maps that hold numpy arrays; nothing in it is ever executed.

An array travels as a map of the byte-string keys `__ndarray__`, `data`, `dtype` and `shape`, a
numpy scalar as one of `__npgeneric__`, `data` and `dtype`. `RequestReader` checks keys and values.

Source: msgpack_numpy.py of openpi-client 0.1.2 on PyPI, for the facts of the format.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgpack
import numpy as np

from pipeline.errors import RequestError
from pipeline.rollout.serve.request import clipped
from policy.errors import first_line

MAX_ITEMS: Final = 256  # entries of one map or array; openpi's clients send about ten
NUMBERS: Final = re.compile("[<>|=]?[biuf][1248]")  # dtypes of bool, int, uint and float


def encode_message(fields: Mapping[str, object]) -> bytes:
    """Return a map as a message; its values are msgpack's own types, and numpy arrays."""
    message: bytes = msgpack.packb(fields, default=_array_as_map)
    return message


def decode_message(message: bytes | str) -> dict[Any, Any]:
    """Read a message; its size is bounded where it is received.

    Returns:
        The map's keys with their values; arrays are read-only views of the message's bytes.

    Raises:
        RequestError: the message is no map, or an array in it does not hold numbers.
    """
    try:
        content = msgpack.unpackb(
            message,
            object_hook=_array_from_map,
            max_array_len=MAX_ITEMS,  # a header is 5 bytes long and could announce 2^32 entries
            max_map_len=MAX_ITEMS,
        )
    except (ValueError, TypeError, KeyError, OverflowError, msgpack.UnpackException) as error:
        raise RequestError(
            f"message: expected msgpack with numpy arrays, found: {clipped(first_line(error))}"
        ) from error
    if not isinstance(content, dict):
        raise RequestError(f"message: expected a map, found {type(content).__name__}")
    return content


def _array_as_map(array: np.ndarray) -> dict[bytes, object]:
    return {
        b"__ndarray__": True,
        b"data": array.tobytes(),
        b"dtype": array.dtype.str,
        b"shape": array.shape,
    }


def _array_from_map(content: dict[str | bytes, Any]) -> Any:
    if b"__npgeneric__" in content:
        return content[b"data"]
    if b"__ndarray__" not in content:
        return content
    code = content[b"dtype"]
    if not isinstance(code, str) or not NUMBERS.fullmatch(code):
        raise ValueError(f"dtype {clipped(code)}; expected bool, int, uint or float")
    return np.frombuffer(content[b"data"], code).reshape(content[b"shape"])
