from __future__ import annotations

import ast
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suite_fixtures import TOY, install_toy

from visuomotor.envs.suites import server
from visuomotor.envs.suites.process import SuiteProcess
from visuomotor.envs.workers import EnvWorkerError


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toy(monkeypatch, tmp_path)


def process_of(timeout_s: float = 20.0) -> SuiteProcess:
    memory = os.memfd_create("test")
    try:
        return SuiteProcess(TOY, memory, gl=None, timeout_s=timeout_s, what="the worker")
    finally:
        os.close(memory)


def message(body: bytes, *, version: int = server.VERSION, size: int | None = None) -> bytes:
    return server.HEADER.pack(server.MAGIC, version, 0, len(body) if size is None else size, 0) + body


BAD = {
    "another version": (message(b"{}", version=9), "version 9 came; this side speaks version 1"),
    "no magic": (b"GET / HTTP/1.1\r\n\r\n", "a message begins with b'GET '"),
    "too large": (message(b"", size=1 << 31), "at most"),
    "no JSON": (message(b"\x80\x04N."), "no JSON"),
    "no object": (message(b"[]"), "holds a list"),
    "unknown order": (message(b'{"order":"x"}'), "unknown order 'x'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_worker_refuses_what_is_no_message_and_leaves(kind: str) -> None:
    data, said = BAD[kind]
    worker = process_of()
    worker.pipe.sendall(data)
    with pytest.raises(EnvWorkerError, match="ProtocolError") as caught:
        worker.result()
    assert said in str(caught.value)
    assert worker.process.wait(timeout=20) == 1
    worker.end()


def test_another_version_on_the_other_side_is_named() -> None:
    ours, theirs = socket.socketpair()
    server.send(theirs, {"python": "3"}, version=server.VERSION + 1)
    worker = process_of()
    worker.pipe.close()
    worker.pipe = ours
    worker.process.kill = lambda: None  # type: ignore[method-assign]
    worker.process.poll = lambda: None  # type: ignore[method-assign]
    with pytest.raises(EnvWorkerError, match=r"does not keep to the protocol: .*version 2 came"):
        worker.result()
    theirs.close()
    worker.end()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.one_of(st.none(), st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))))
def test_malformed_messages_never_hang(body: bytes, sizes: tuple[int, int] | None) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    head = b"" if sizes is None else server.HEADER.pack(server.MAGIC, server.VERSION, 0, *sizes)
    theirs.sendall(head + body)
    theirs.close()
    try:
        got, blob = server.receive(ours)
        assert isinstance(got, dict)
        assert sizes is not None
        assert len(blob) == sizes[1]
    except (server.ProtocolError, EOFError):
        pass
    finally:
        ours.close()


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.lists(st.floats(allow_nan=False)))), st.binary()
)
def test_messages_arrive_as_they_were_sent(sent: dict[str, Any], blob: bytes) -> None:
    ours, theirs = socket.socketpair()
    server.send(theirs, sent, blob)  # small enough for the socket's buffer
    assert server.receive(ours) == (sent, blob)
    ours.close()
    theirs.close()


def test_the_header_is_what_the_module_says() -> None:
    ours, theirs = socket.socketpair()
    server.send(theirs, {}, b"xyz")
    assert ours.recv(100) == b"VMSU" + struct.pack(">HHII", 1, 0, 2, 3) + b"{}xyz"
    ours.close()
    theirs.close()


@pytest.mark.parametrize("name", ["server", "adapters"])
def test_what_runs_elsewhere_imports_nothing_of_this_package_and_no_pickle(name: str) -> None:
    tree = ast.parse(Path(server.__file__).with_name(f"{name}.py").read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not {m for m in imported if m.split(".")[0] in ("visuomotor", "pickle", "cloudpickle", "torch")}
