"""The decoder against openpi's own packer, and against messages of another form."""

import re
import tracemalloc

import msgpack
import numpy as np
import pytest
from openpi_client import msgpack_numpy

from pipeline.errors import RequestError
from pipeline.rollout.serve.request import RequestReader
from pipeline.rollout.serve.wire import MAX_ITEMS, decode_message, encode_message
from policy.spec import AgentSpec
from tests.pipeline.tiny import POOLED

DTYPES = "?bBhHiIqQefd"


def array_map(**changes: object) -> dict[bytes, object]:
    fields = {"__ndarray__": True, "data": b"\0" * 6, "dtype": "|u1", "shape": [2, 3]} | changes
    return {name.encode(): value for name, value in fields.items()}


def refusal(message: bytes) -> str:
    with pytest.raises(RequestError) as caught:
        decode_message(message)
    told = str(caught.value)
    assert told.isprintable()
    assert len(told) < 400
    return told


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("code", DTYPES)
def test_arrays_of_the_public_client_arrive_as_they_were(code, order):
    dtype = np.dtype(order + code)
    sent = np.arange(24).reshape(2, 3, 4).astype(dtype)
    got = decode_message(msgpack_numpy.packb({"a": sent}))["a"]
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, sent)


def test_numbers_and_text_arrive_as_they_were():
    sent = {
        "none": None,
        "bool": np.bool_(True),
        "int": np.int64(-3),
        "uint": np.uint8(200),
        "float": np.float32(0.5),
        "text": "pick up the cüp",
        "zero axes": np.array(2.5),
    }
    got = decode_message(msgpack_numpy.packb(sent))
    assert got == {
        name: getattr(value, "item", lambda v=value: v)() for name, value in sent.items()
    }


def test_the_public_client_reads_what_we_write():
    sent = {"actions": np.arange(8, dtype=np.float32).reshape(2, 4), "timing": {"infer_ms": 1.5}}
    got = msgpack_numpy.unpackb(encode_message(sent))
    assert got["actions"].dtype == np.float32
    np.testing.assert_array_equal(got["actions"], sent["actions"])
    assert got["timing"] == sent["timing"]


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"dtype": "|O"}, "found: dtype |O; expected bool, int, uint or float"),
        ({"dtype": "<U1000000000"}, "found: dtype <U1000000000"),
        ({"dtype": "|S6"}, "found: dtype |S6"),
        ({"dtype": "|V6"}, "found: dtype |V6"),
        ({"dtype": "<M8[s]"}, "found: dtype <M8"),
        ({"dtype": "<c8"}, "found: dtype <c8"),
        ({"dtype": "u1,(1000000,1000000)f8"}, "found: dtype u1,"),
        ({"dtype": [["x", "<f4"]]}, "found: dtype [['x', '<f4']]"),
        ({"dtype": None}, "found: dtype None"),
        ({"shape": [2, 4]}, "cannot reshape array of size 6 into shape (2,4)"),
        ({"shape": [2**62, 2**62, 2**62]}, "cannot reshape array of size 6"),
        ({"shape": [-2, -3]}, "can only specify one unknown dimension"),
        ({"shape": [6.0]}, "cannot be interpreted as an integer"),
        ({"shape": [1] * 99 + [6]}, "maximum supported dimension"),
        ({"data": "text"}, "bytes-like object is required"),
        ({"data": [0] * 6}, "bytes-like object is required"),
    ],
)
def test_arrays_that_are_none_are_refused(changes, pattern):
    assert pattern in refusal(msgpack.packb({"a": array_map(**changes)}))


@pytest.mark.parametrize(
    ("message", "pattern"),
    [
        (b"", "expected msgpack with numpy arrays, found: "),
        (b"\xc1", "expected msgpack with numpy arrays, found: "),
        (b"\x81\xa1a\x01\x02", "expected msgpack with numpy arrays, found: "),  # more after the end
        (b"\x81\xa2\xff\xfe\x01", "expected msgpack with numpy arrays, found: "),  # no UTF-8
        (msgpack.packb([1, 2]), "expected a map, found list"),
        (msgpack.packb(3), "expected a map, found int"),
        (msgpack.packb({1: 1}), "expected msgpack with numpy arrays, found: "),
        (msgpack.packb(array_map()), "expected a map, found ndarray"),
    ],
)
def test_messages_of_another_form_are_refused(message, pattern):
    assert pattern in refusal(message)


BOMBS = {
    "an array of 2^32 entries": b"\xdd\xff\xff\xff\xff",
    "a map of 2^32 entries": b"\xdf\xff\xff\xff\xff",
    "bytes of 4 GiB": b"\xc6\xff\xff\xff\xff",
    "nested arrays": b"\x91" * 1_000_000,
    "nested maps": b"\x81\xa1a" * 1_000_000,
    "nested arrays of a million entries": b"\xdd\x00\x0f\x00\x00" * 200_000,
    "nested arrays of 256 entries": b"\xdc\x01\x00" * 1_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_message_cannot_swell(name):
    tracemalloc.start()
    try:
        refusal(BOMBS[name])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 1,024 open arrays of 256 pointers, the deepest that the parser goes, are 2 MiB.
    assert peak < 4 * 2**20


def test_an_observation_of_a_hundred_cameras_fits_the_budget():
    views = {f"observation/{number}": np.zeros((2, 2, 3), np.uint8) for number in range(100)}
    assert len(views) + 3 < MAX_ITEMS
    assert decode_message(msgpack_numpy.packb(views)).keys() == views.keys()


def mutated(message: bytes, numbers: np.random.Generator) -> bytes:
    """Flip bytes, cut, repeat, insert: one to four times."""
    content = bytearray(message)
    for _ in range(numbers.integers(1, 5)):
        start, stop = sorted(numbers.integers(0, len(content) + 1, 2).tolist())
        match numbers.integers(5):
            case 0:
                content[start % len(content)] = int(numbers.integers(256))
            case 1:
                content[start % len(content)] ^= 1 << int(numbers.integers(8))
            case 2:
                content = content[:stop] + content[start:]
            case 3:
                content[start:start] = numbers.bytes(int(numbers.integers(1, 9)))
            case 4:
                content = content[: max(stop, 1)]
    return bytes(content)


def test_mutated_messages_are_read_or_refused_and_nothing_else():
    numbers = np.random.default_rng(0)
    fields = {
        "observation/front": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
        "observation/state": np.arange(5, dtype=np.float32),
        "reset": np.bool_(True),
        "prompt": "push",
    }
    message = msgpack_numpy.packb(fields)
    spec = AgentSpec(view_names=("front",), feature_shapes=POOLED, state_dim=5, action_dim=1)
    reader, outcomes = RequestReader(spec, obs_horizon=2), []
    for _ in range(2_000):
        try:
            request = reader.read(decode_message(mutated(message, numbers)))
        except RequestError as error:
            outcomes.append(str(error))
            assert outcomes[-1].isprintable()
        else:
            outcomes.append("")
            assert request.frames.shape == (1, 1, 256, 256, 3)
            assert np.isfinite(request.state).all()
    # Mutations reach what lies behind the parser, and some do no harm.
    first_words = {re.split("[/:]", told)[0] for told in outcomes}
    assert {"", "observation", "message"} <= first_words
