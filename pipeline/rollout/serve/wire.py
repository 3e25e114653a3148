"""openpi's wire format: msgpack maps that hold numpy arrays; nothing in it is ever executed.

An array travels as a map of the byte-string keys `__ndarray__`, `data`, `dtype` and `shape`, a
numpy scalar as one of `__npgeneric__`, `data` and `dtype`. The sender is not trusted: for any
message, `decode_message` returns numbers and text or raises `RequestError`.

Source: msgpack_numpy.py of openpi-client 0.1.2 on PyPI, for the facts of the format.
Differs from the source: reads flat maps only, as observations are, and numbers of fixed size only.
"""

import math
from collections.abc import Mapping
from typing import Final, TypeVar

import msgpack
import numpy as np

from pipeline.errors import RequestError
from pipeline.rollout.serve.request import Value, clipped

Container = TypeVar("Container")

MAX_CONTAINERS: Final = 512  # maps and lists in a message; a numpy array is two
MAX_ITEMS: Final = 256  # entries of one map or array; openpi's clients send about ten
MAX_AXES: Final = 8  # a stack of frames has four

_ARRAY_KEYS: Final = {b"__ndarray__", b"data", b"dtype", b"shape"}
_SCALAR_KEYS: Final = {b"__npgeneric__", b"data", b"dtype"}
_NUMBERS: Final = ("u2", "u4", "u8", "i2", "i4", "i8", "f2", "f4", "f8")
_DTYPES: Final = {
    name: np.dtype(name)
    for name in ("|b1", "|u1", "|i1", *(order + number for order in "<>" for number in _NUMBERS))
}
_SCALAR_TYPES: Final[dict[str, tuple[type, ...]]] = {"b": (bool,), "f": (float,)}  # others are int


def encode_message(fields: Mapping[str, object]) -> bytes:
    """Return a map as a message; its values are msgpack's own types, and numpy arrays."""
    message: bytes = msgpack.packb(fields, default=_array_as_map)
    return message


def decode_message(message: bytes | str) -> dict[str, Value]:
    """Read a message of at most a few megabytes; its size is bounded where it is received.

    Returns:
        The map's keys with their values; arrays are read-only views of the message's bytes.

    Raises:
        RequestError: the message is no map from text to numbers, text and numeric arrays.
    """
    if isinstance(message, str):
        raise RequestError("message: expected bytes of msgpack, found text")
    left = MAX_CONTAINERS  # 16 MB could announce 16 million empty maps

    def count(container: Container) -> Container:
        nonlocal left
        left -= 1
        if left < 0:
            raise RequestError(
                f"message: expected {MAX_CONTAINERS} maps and lists or fewer, found more"
            )
        return container

    def take_map(pairs: list[tuple[str | bytes, object]]) -> dict[str | bytes, object]:
        if len(content := dict(pairs)) < len(pairs):
            raise RequestError("message: expected each key once, found one twice")
        return count(content)

    try:
        content = msgpack.unpackb(
            message,
            object_pairs_hook=take_map,
            list_hook=count,
            max_array_len=MAX_ITEMS,  # a header is 5 bytes long and could announce 2^32 entries
            max_map_len=MAX_ITEMS,
        )
    except RequestError:
        raise
    except (ValueError, msgpack.UnpackException) as error:
        reason = str(error) or type(error).__name__
        raise RequestError(
            f"message: expected msgpack, found {clipped(reason)} in its {len(message)} bytes"
        ) from error
    if not isinstance(content, dict):
        raise RequestError(f"message: expected a map, found {type(content).__name__}")
    return {_name(key): _value(clipped(key), value) for key, value in content.items()}


def _array_as_map(content: object) -> dict[bytes, object]:
    if not isinstance(content, np.ndarray) or content.dtype.str not in _DTYPES:
        raise TypeError(f"cannot send {type(content).__name__}")
    return {
        b"__ndarray__": True,
        b"data": content.tobytes(),
        b"dtype": content.dtype.str,
        b"shape": content.shape,
    }


def _name(key: str | bytes) -> str:
    if not isinstance(key, str):
        raise RequestError(f"message: expected text as keys, found {clipped(key)}")
    return key


def _value(name: str, content: object) -> Value:
    if content is None or isinstance(content, bool | int | float | str):
        return content
    if isinstance(content, dict) and content.keys() == _ARRAY_KEYS:
        return _array(name, content[b"data"], _dtype(name, content), content[b"shape"])
    if isinstance(content, dict) and content.keys() == _SCALAR_KEYS:
        return _scalar(name, content[b"data"], _dtype(name, content))
    raise RequestError(
        f"{name}: expected a numpy array, a number or text, found a {type(content).__name__}; "
        "keys are flat, as in observation/state"
    )


def _dtype(name: str, content: dict[bytes, object]) -> np.dtype:
    code = content[b"dtype"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise RequestError(
            f"{name}: expected a dtype of bool, int, uint or float, found {clipped(code)}"
        )
    return _DTYPES[code]


def _array(name: str, data: object, dtype: np.dtype, shape: object) -> np.ndarray:
    is_shape = isinstance(shape, list) and all(type(n) is int and n >= 1 for n in shape)
    if not isinstance(shape, list) or not is_shape or len(shape) > MAX_AXES:
        raise RequestError(
            f"{name}: expected a shape of {MAX_AXES} lengths or fewer, each 1 or more, found "
            f"{clipped(shape)}"
        )
    size = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != size:
        found = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise RequestError(
            f"{name}: expected {size} bytes for {dtype.name} {shape}, found {clipped(found)}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(name: str, data: object, dtype: np.dtype) -> Value:
    types = _SCALAR_TYPES.get(dtype.kind, (int,))
    if type(data) not in types or not isinstance(data, bool | int | float):
        raise RequestError(f"{name}: expected a {dtype.name}, found {type(data).__name__}")
    return data
