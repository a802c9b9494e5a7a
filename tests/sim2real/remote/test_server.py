from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from visuomotor.data.errors import CheckpointError, ConfigError, UserError
from visuomotor.sim2real.remote.config import ServerConfig
from visuomotor.sim2real.remote.protocol import write_plan
from visuomotor.sim2real.remote.wire import decode, encode

TOKEN = "a-token-of-20-bytes!"


def hello(ws, **changes):
    ws.send(encode({"kind": "hello", "protocol": 1, "name": "test", "spec": None, **changes}))


def open_raw(url, **kwargs):
    return connect(url, compression=None, proxy=None, open_timeout=10, **kwargs)


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def fetch(url, token=None):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def test_a_robot_gets_the_chunk_of_its_observation(source, start, dial, ask, spec):
    server = start(source)
    client = dial(server.url)
    assert client.spec.to_dict() == spec.to_dict()
    assert client.about == {"model": "arithmetic"}
    np.testing.assert_array_equal(client.plan(ask(2.0)), np.tile([6.0, 7.0], (8, 1)))
    np.testing.assert_array_equal(client.plan(ask(3.0)), np.tile([9.0, 7.0], (8, 1)))
    assert (client.counts.asked, client.counts.answered, client.counts.late) == (2, 2, 0)
    assert client.counts.round_trip_s[0] >= client.counts.planned_s[0]
    jpeg = dial(server.url, jpeg=90)
    np.testing.assert_allclose(jpeg.plan(ask(2.0)), np.tile([6.0, 7.0], (8, 1)), atol=1.0)


def test_health_and_metrics(source, start, dial, ask):
    server = start(source, token=TOKEN)
    http = f"http://127.0.0.1:{server.port}"
    assert json.loads(fetch(f"{http}/health"))["status"] == "ok"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        fetch(f"{http}/metrics")
    dial(server.url, token=TOKEN).plan(ask())
    values = dict(line.split() for line in fetch(f"{http}/metrics", TOKEN).splitlines())
    assert values["visuomotor_clients"] == values["visuomotor_answered"] == "1"
    assert float(values["visuomotor_planned_ms_p95"]) >= 0
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(f"{http}/other", TOKEN)


@pytest.mark.parametrize("shown", [None, "", TOKEN[:-1], TOKEN + "x", "a-token-of-20-bytes?"])
def test_nobody_gets_in_without_the_token(source, start, dial, ask, shown, monkeypatch):
    monkeypatch.delenv("VISUOMOTOR_TOKEN", raising=False)
    server = start(source, token=TOKEN)
    headers = {} if shown is None else {"Authorization": f"Bearer {shown}"}
    with pytest.raises(InvalidStatus) as refused:
        open_raw(server.url, additional_headers=headers)
    assert refused.value.response.status_code == 401
    with pytest.raises(UserError, match="asks for another token" if shown != "" else "0 characters"):
        dial(server.url, token=shown)
    monkeypatch.setenv("VISUOMOTOR_TOKEN", TOKEN)
    assert dial(server.url).plan(ask()) is not None
    assert source.batches == [1]


def test_a_token_shown_twice_is_none(source, start):
    server = start(source, token=TOKEN)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        twice = f"Authorization: Bearer {TOKEN}\r\n" * 2
        raw.sendall(f"GET /metrics HTTP/1.1\r\nHost: x\r\n{twice}\r\n".encode())
        assert b"401" in raw.recv(100)


def test_web_pages_are_kept_out_even_without_a_token(source, start):
    server = start(source)
    with pytest.raises(InvalidStatus) as refused:
        open_raw(server.url, origin="http://evil.example")
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "robot.example", ""])
def test_other_machines_need_a_token(host, monkeypatch):
    monkeypatch.delenv("VISUOMOTOR_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="lets other machines in"):
        ServerConfig(host=host)
    assert ServerConfig(host=host, token=TOKEN).token == TOKEN
    monkeypatch.setenv("VISUOMOTOR_TOKEN", TOKEN)
    assert ServerConfig(host=host).token == TOKEN


def test_settings_that_cannot_be(tmp_path, monkeypatch):
    monkeypatch.delenv("VISUOMOTOR_TOKEN", raising=False)
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert ServerConfig(token_file=str(tmp_path / "token")).token == TOKEN
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"token": "short"}, "5 characters"), ({"token": "with space and more"}, "printable"),
        ({"token": TOKEN, "token_file": "x"}, "not both"), ({"token_file": str(tmp_path / "none")}, "token_file"),
        ({"tls_cert": "x"}, "both"), ({"port": 70000}, "port"), ({"max_clients": 0}, "max_clients"),
    ]  # fmt: skip
    for kwargs, text in wrong:
        with pytest.raises(ConfigError, match=text):
            ServerConfig(**kwargs)


def test_a_port_in_use_is_one_sentence(source, start):
    server = start(source)
    import asyncio

    from visuomotor.sim2real.remote.server import PolicyServer

    async def second():
        async with PolicyServer(source, ServerConfig(port=server.port)):
            pass

    with pytest.raises(UserError, match="cannot listen at"):
        asyncio.run(second())


def test_a_robot_of_another_policy_is_refused(source, start, dial, spec):
    server = start(source)
    with pytest.raises(CheckpointError, match=r"fps is 20\.0 for the server and 30\.0 for the robot"):
        dial(server.url, expected=replace(spec, fps=30.0))
    assert dial(server.url, expected=spec).connected


def test_no_server_is_one_sentence(dial):
    with pytest.raises(UserError, match=r"no policy server at ws://127\.0\.0\.1:9 within 0\.3 s"):
        dial("ws://127.0.0.1:9", connect_s=0.3)


def test_robots_beyond_the_number_allowed_are_turned_away(source, start, dial):
    server = start(source, max_clients=1)
    dial(server.url)
    with pytest.raises(UserError, match="as many robots as it allows"):
        dial(server.url, connect_s=1.0)


# ---- time


def test_a_request_whose_time_is_over_is_dropped_and_not_computed(source, start, dial, ask):
    server = start(source)
    first, second = dial(server.url), dial(server.url)
    source.go.clear()
    busy = threading.Thread(target=lambda: first.plan(ask(1.0)))
    busy.start()
    assert source.entered.wait(20)
    begin = time.monotonic()
    assert second.plan(ask(2.0, deadline_s=0.1)) is None
    assert time.monotonic() - begin < 2.0
    wait_for(lambda: server.server.batcher.counts.received == 2)
    source.go.set()
    busy.join(10)
    wait_for(lambda: server.server.batcher.counts.expired == 1)
    np.testing.assert_array_equal(second.plan(ask(3.0))[0], [9.0, 7.0])
    assert source.seen == [1.0, 3.0]  # never 2
    assert second.counts.late == 1


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one(source, start, dial, ask):
    client = dial(start(source).url)
    source.seconds = 0.3
    assert client.plan(ask(1.0, deadline_s=0.1)) is None
    np.testing.assert_array_equal(client.plan(ask(2.0))[0], [6.0, 7.0])


def test_the_newest_observation_of_a_robot_wins(source, start, spec, ask):
    server = start(source)
    source.go.clear()
    with open_raw(server.url) as ws:
        hello(ws)
        decode(ws.recv(10))
        for i in range(30):
            ws.send(encode(write_plan(spec, ask(float(i)), i, jpeg_quality=None)))
            assert source.entered.wait(20)
        wait_for(lambda: server.server.batcher.counts.received == 30)
        source.go.set()
        answers: list[dict[str, Any]] = []
        while not answers or answers[-1]["sequence"] != 29:
            answers.append(decode(ws.recv(10)))
    assert len(source.seen) <= 2 < 30  # the one that was being computed, and the newest
    assert source.seen[-1] == 29.0
    assert server.server.batcher.counts.replaced >= 28
    np.testing.assert_array_equal(answers[-1]["chunk"][0], [87.0, 7.0])


def test_robots_that_ask_at_the_same_time_are_computed_together(source, start, dial, ask):
    server = start(source, gather_ms=1000.0)  # it is over when all have asked
    clients = [dial(server.url) for _ in range(4)]
    out: dict[int, np.ndarray | None] = {}
    threads = [
        threading.Thread(target=lambda i=i, c=c: out.update({i: c.plan(ask(float(i)))})) for i, c in enumerate(clients)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join(20)
    assert [None if c is None else c[0, 0] for _, c in sorted(out.items())] == [0.0, 3.0, 6.0, 9.0]
    assert sum(source.batches) == 4
    assert max(source.batches) >= 2
    begin = time.monotonic()
    for client in clients[1:]:
        client.close()
    wait_for(lambda: server.server.metrics()["clients"] == 1)
    clients[0].plan(ask())
    assert time.monotonic() - begin < 5


def test_a_policy_that_raises_refuses_and_lives(source, start, dial, ask):
    client = dial(start(source).url)
    source.fail = RuntimeError("out of memory")
    assert client.plan(ask()) is None
    assert client.refusal == "the policy failed: RuntimeError: out of memory"
    source.fail = None
    assert client.plan(ask()) is not None


def test_measurements_and_actions_that_are_no_numbers(source, start, dial, ask):
    client = dial(start(source).url)
    assert client.plan(ask(float("nan"))) is None
    assert "'state' holds numbers that are not finite" in client.refusal
    assert client.plan(ask(float(np.finfo(np.float32).max))) is None  # the sum overflows to infinity
    assert client.refusal == "the policy's actions are not finite"
    assert client.plan(ask()) is not None


# ---- reconnecting


def test_a_client_comes_back_after_the_server_did(source, start, dial, ask):
    server = start(source)
    client = dial(server.url)
    assert client.plan(ask()) is not None
    server.close()
    assert client.plan(ask(deadline_s=0.2)) is None
    wait_for(lambda: not client.connected)
    assert client.trouble
    start(source, port=server.port)
    wait_for(lambda: client.connected)
    np.testing.assert_array_equal(client.plan(ask(2.0))[0], [6.0, 7.0])
    assert client.counts.connections == 2


def test_a_server_that_comes_back_with_another_policy_is_refused_for_good(source, start, dial, ask, spec):
    server = start(source)
    client = dial(server.url)
    server.close()
    source.spec = replace(spec, fps=10.0)
    start(source, port=server.port)
    wait_for(lambda: "fps" in client.trouble)
    with pytest.raises(CheckpointError, match="fps"):
        client.plan(ask())
    assert source.seen == []


def test_a_cut_network_delays_nobody_beyond_the_deadline(source, start, dial, ask):
    """A proxy that stops passing bytes, without closing anything."""
    server = start(source)
    listener = socket.create_server(("127.0.0.1", 0))
    passing = threading.Event()
    passing.set()

    def pump(a, b):
        while data := a.recv(65536):
            passing.wait()
            b.sendall(data)

    def accept():
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", server.port))
        for pair in ((near, far), (far, near)):
            threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    client = dial(f"ws://127.0.0.1:{listener.getsockname()[1]}")
    assert client.plan(ask()) is not None
    passing.clear()
    begin = time.monotonic()
    assert client.plan(ask(deadline_s=0.1)) is None
    assert 0.1 <= time.monotonic() - begin < 3.0
    passing.set()
    assert client.plan(ask(4.0))[0, 0] == 12.0
    client.close()
    listener.close()
