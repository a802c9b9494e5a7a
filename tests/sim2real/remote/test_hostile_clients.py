"""Clients that send what no client sends."""

from __future__ import annotations

import socket

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from visuomotor.sim2real.remote.protocol import write_plan
from visuomotor.sim2real.remote.wire import decode, encode


def hello(ws):
    ws.send(encode({"kind": "hello", "protocol": 1, "name": "test", "spec": None}))


def open_raw(url, **kwargs):
    return connect(url, compression=None, proxy=None, open_timeout=10, **kwargs)


def closing(closed):
    """Code and reason of the server."""
    assert closed.rcvd is not None
    return closed.rcvd.code, closed.rcvd.reason


def cut_off(url, *messages):
    """Send raw messages after a hello; the code and the reason that the server closes with."""
    with open_raw(url, max_size=None) as ws:
        hello(ws)
        decode(ws.recv(10))
        for message in messages:
            ws.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(10)
        return closing(closed.value)


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        ("text", 1008, "text, where messages are binary"),
        (b"", 1008, "no message"),
        (msgpack.packb([1, 2]), 1008, "map with text keys"),
        (b"\x81\xa1x" + b"\x91" * 60_000, 1008, "no message"),
        (encode({"kind": "hello", "protocol": 1}), 1008, "expected 'plan'"),
        (bytes(1 << 20), 1009, ""),  # larger than any request of this policy
    ],
    ids=["text", "empty", "list", "deep", "hello again", "huge"],
)
def test_a_hostile_client_is_cut_off_and_the_others_go_on(source, start, dial, ask, message, code, reason):
    server = start(source)
    client = dial(server.url)
    got = cut_off(server.url, message)
    assert got[0] == code
    assert reason in got[1]
    assert client.plan(ask()) is not None
    assert client.counts.connections == 1


def test_who_says_nothing_or_something_else_first_is_cut_off(source, start, monkeypatch):
    monkeypatch.setattr("visuomotor.sim2real.remote.server._HELLO_S", 0.1)
    server = start(source)
    for message, reason in ((None, "no message in time"), (encode({"kind": "plan"}), "expected 'hello' first")):
        with open_raw(server.url) as ws:
            if message is not None:
                ws.send(message)
            with pytest.raises(ConnectionClosed) as closed:
                ws.recv(10)
        assert reason in closing(closed.value)[1]


def test_random_and_damaged_messages_leave_the_server_alive(source, start, dial, ask, spec):
    server = start(source)
    client = dial(server.url)
    whole, codes = encode(write_plan(spec, ask(), 1, jpeg_quality=80)), []

    def outcome(ws):
        try:
            return decode(ws.recv(10))["kind"]  # damaged where it does not matter: an answer
        except ConnectionClosed as closed:
            return closing(closed)[0]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def fuzz(data):
        damaged = bytearray(whole)
        for _ in range(data.draw(st.integers(0, 5))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        message = data.draw(st.sampled_from([bytes(damaged), bytes(damaged[: data.draw(st.integers(0, len(whole)))])]))
        message = data.draw(st.one_of(st.just(message), st.binary(max_size=200)))
        with open_raw(server.url) as ws:
            hello(ws)
            decode(ws.recv(10))
            ws.send(message)
            codes.append(outcome(ws))

    fuzz()
    assert set(codes) <= {"chunk", "refused", 1008}
    assert 1008 in codes
    assert client.plan(ask(2.0))[0, 0] == 6.0
    assert client.counts.connections == 1


def test_bytes_that_are_no_websocket_leave_the_server_alive(source, start, dial, ask):
    server = start(source)
    junk = (
        b"\0" * 1000,
        b"GET / HTTP/1.1\r\n" + b"X" * 100_000,
        b"POST / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01",
    )
    for data in junk:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(data)
    assert dial(server.url).plan(ask()) is not None
