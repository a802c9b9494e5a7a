from __future__ import annotations

import struct

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from visuomotor.sim2real.remote.wire import Jpeg, WireError, decode, encode


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.float32]), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
    )
)
def test_arrays_come_back_as_they_went(array):
    back = decode(encode({"x": array, "n": 3, "f": 0.1, "none": None, "list": [1, "a"]}))
    assert back["x"].dtype == array.dtype
    assert back["x"].shape == array.shape
    np.testing.assert_array_equal(back["x"], array)
    assert (back["n"], back["f"], back["none"], back["list"]) == (3, 0.1, None, [1, "a"])


def test_the_bytes_of_an_array_are_those_of_the_documentation():
    raw = msgpack.unpackb(encode({"x": np.array([[1.0, 2.0]], np.float32)}))["x"]
    assert raw == msgpack.ExtType(1, bytes([1, 2]) + struct.pack("<II", 1, 2) + struct.pack("<ff", 1.0, 2.0))
    big = np.array([1.0, 2.0], ">f4")
    np.testing.assert_array_equal(decode(encode({"x": big}))["x"], [1.0, 2.0])


def test_a_jpeg_stays_a_file():
    assert decode(encode({"x": [Jpeg(b"\xff\xd8abc")]}))["x"] == [Jpeg(b"\xff\xd8abc")]


@pytest.mark.parametrize("value", [np.zeros(2), np.zeros(2, np.int64), np.array(["a"]), object(), {1, 2}, b"raw"[0:0]])
def test_only_listed_types_are_sent(value):
    if isinstance(value, bytes):
        with pytest.raises(WireError):  # plain bytes have no use in this protocol, so none come in
            decode(encode({"x": b"raw"}))
    else:
        with pytest.raises(WireError, match="cannot be sent"):
            encode({"x": value})


def array_ext(dtype: int, shape: tuple[int, ...], values: bytes) -> bytes:
    head = struct.pack(f"<BB{len(shape)}I", dtype, len(shape), *shape)
    return msgpack.packb({"x": msgpack.ExtType(1, head + values)})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x80trailing",
        msgpack.packb([1]),
        msgpack.packb({1: 2}),
        msgpack.packb({"x": msgpack.ExtType(1, b"")}),
        msgpack.packb({"x": msgpack.ExtType(3, b"abc")}),
        array_ext(2, (1,), b"\0" * 8),  # a type that is not listed
        array_ext(255, (1,), b"\0" * 8),
        array_ext(1, (2**32 - 1,) * 8, b"\0" * 8),  # 2**256 values: refused, not allocated
        array_ext(0, (65536, 65536), b""),
        array_ext(0, (4,), b"\0" * 3),
        array_ext(0, (4,), b"\0" * 5),
        struct.pack("<BB", 0x81, 0xA1) + b"x" + bytes([0xC9, 0xFF, 0xFF, 0xFF, 0xFF, 1]),  # says 4 GB, holds nothing
        b"\xdf\xff\xff\xff\xff",  # a map of 2**32 entries
        b"\xdd\xff\xff\xff\xff",
        b"\x81\xa1x" + b"\x91" * 100_000,  # nested without end
        b"\x81\xa1x" + b"\x81\xa1x" * 50_000,
    ],
)
def test_hostile_bytes_are_refused(data):
    with pytest.raises(WireError):
        decode(data)


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_random_bytes_are_a_message_or_refused(data):
    try:
        message = decode(data)
    except WireError:
        return
    assert all(isinstance(k, str) for k in message)


@settings(max_examples=300)
@given(st.data())
def test_damaged_messages_are_a_message_or_refused(data):
    whole = bytearray(encode({"kind": "plan", "obs": {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, "n": 7}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    for damaged in (bytes(whole), bytes(whole[:cut])):
        try:
            decode(damaged)
        except WireError:
            continue
