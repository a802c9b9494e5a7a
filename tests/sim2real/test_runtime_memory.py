"""Memory, board, box and link between the bridge and the policy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from visuomotor.data.errors import ConfigError
from visuomotor.data.spec import ArraySpec
from visuomotor.sim2real.runtime.board import RequestBox, StatusBoard
from visuomotor.sim2real.runtime.link import PolicyPort, SharedLink
from visuomotor.sim2real.runtime.memory import Block, Counters, Ring, Segment
from visuomotor.sim2real.runtime.types import Chunk, Observed, Request, State, Status

OBS = {"joint_pos": ArraySpec(shape=(3,)), "front": ArraySpec(shape=(8, 8, 3), dtype="uint8")}
MS = 1_000_000


def segment_pair(size: int) -> tuple[Segment, Segment]:
    mine = Segment(size)
    return mine, Segment(size, os.dup(mine.fd))


def test_a_block_is_read_as_it_was_written() -> None:
    mine, theirs = segment_pair(4096)
    writer, reader = Block(mine, 100), Block(theirs, 100)
    assert reader.read() is None
    writer.write([b"abc", b"", b"de"], 7)
    assert reader.read() == (b"abcde", 7)
    writer.write([b"x"], -3)
    assert reader.read() == (b"x", -3)
    with pytest.raises(ValueError, match="101 bytes for a block of 100"):
        writer.write([bytes(101)])


def test_a_record_whose_writer_died_in_the_midst_is_not_read() -> None:
    mine, theirs = segment_pair(4096)
    writer, reader = Block(mine, 100), Block(theirs, 100)
    writer.write([b"whole"])
    writer._head[0] += 1  # odd: being written
    assert reader.read() is None
    writer.write([b"next"])  # another writer goes on
    assert reader.read() == (b"next", 0)


def test_a_record_whose_bytes_changed_under_way_is_not_read() -> None:
    mine, theirs = segment_pair(4096)
    writer, reader = Block(mine, 100), Block(theirs, 100)
    writer.write([b"whole"])
    writer._body[0] = 0
    assert reader.read() is None


def test_readers_never_see_half_a_record() -> None:
    mine = Segment(Block.needed(8000))
    block = Block(mine, 8000)
    code = (
        "import os, sys\nfrom visuomotor.sim2real.runtime.memory import Block, Segment\n"
        f"b = Block(Segment({mine.size}, {mine.fd}), 8000)\n"
        "for i in range(6000):\n    b.write([bytes([i % 251]) * (1000 + i % 7000)], i)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], pass_fds=[mine.fd])
    seen = 0
    while child.poll() is None:
        found = block.read()
        if found is not None:
            data, i = found
            assert data == bytes([i % 251]) * (1000 + i % 7000)
            seen += 1
    assert child.returncode == 0
    assert seen > 10


def test_a_slow_reader_of_a_ring_goes_on_with_what_is_there() -> None:
    mine, theirs = segment_pair(Ring.needed(4, 16))
    writer, reader = Ring(mine, 4, 16), Ring(theirs, 4, 16)
    assert reader.take() is None
    for i in range(3):
        writer.put([bytes([i])])
    assert [reader.take() for _ in range(4)] == [b"\0", b"\1", b"\2", None]
    for i in range(10, 20):
        writer.put([bytes([i])])
    assert [reader.take() for _ in range(5)] == [bytes([i]) for i in range(16, 20)] + [None]


def test_counters_and_the_end_of_a_segment() -> None:
    mine, theirs = segment_pair(Counters.needed(2))
    a, b = Counters(mine, 2), Counters(theirs, 2)
    a[1] = 2**62 + 1
    assert (b[0], b[1]) == (0, 2**62 + 1)
    with pytest.raises(ValueError, match="bytes asked for"):
        mine.take(1)


def test_nothing_is_left_where_shared_memory_has_names() -> None:
    before = set(os.listdir("/dev/shm"))
    port = PolicyPort(OBS, 4, 2)
    StatusBoard().write(Status())
    assert set(os.listdir("/dev/shm")) <= before
    port.close()


def test_the_board_shows_what_was_written_and_thins_large_pictures() -> None:
    board = StatusBoard()
    reader = StatusBoard(os.dup(board.fd))
    assert reader.read() == Status()
    small, large = np.arange(48, dtype=np.uint8).reshape(4, 4, 3), np.zeros((2000, 2000, 3), np.uint8)
    board.write(Status(state=State.RUN, joints=["a"], preview=[[0.5]], events=["x"], pictures={"s": small, "l": large}))
    shown = reader.read()
    assert (shown.state, shown.joints, shown.preview, shown.events) == ("run", ["a"], [[0.5]], ["x"])
    np.testing.assert_array_equal(shown.pictures["s"], small)
    assert shown.pictures["l"].shape == (500, 500, 3)
    assert reader.version == board.version > 0


def test_requests_come_in_order_and_none_is_lost() -> None:
    box = RequestBox()
    writer = RequestBox((os.dup(box.fds[0]), os.dup(box.fds[1])))
    assert box.take() is None
    for request in Request:
        writer.put(request)
    taken = []
    while (one := box.take()) is not None:
        taken.append(one)
    assert taken == list(Request)
    os.write(box.fds[1], b"nonsense\nstop\n")
    assert box.take() is Request.STOP
    assert box.take() is None


def test_a_box_that_nobody_reads_says_so() -> None:
    box = RequestBox()
    os.close(box.fds[0])
    with pytest.raises(ConfigError, match="the bridge has ended"):
        box.put(Request.START)


def make_link(port: PolicyPort, pid: int, timeout_s: float = 0.1) -> SharedLink:
    fds = (os.dup(port.fds[0]), os.dup(port.fds[1]))
    return SharedLink(OBS, 4, 2, timeout_s=timeout_s, fds=fds, pid=pid)


def observed(step: int) -> Observed:
    values: dict[str, np.ndarray] = {"joint_pos": np.arange(3) + step, "front": np.full((8, 8, 3), step, np.uint8)}
    return Observed(time_ns=step * MS, step=step, episode=2, seed=5, values=values, ages_s={})


def test_observations_go_one_way_and_chunks_the_other() -> None:
    port = PolicyPort(OBS, 4, 2)
    link = make_link(port, os.getpid())
    assert not link.ready
    port.ready()
    assert link.ready
    for step in range(3):
        link.send(observed(step))
    port.wait(1.0)
    got = port.take()
    assert [(o.step, o.time_ns, o.episode, o.seed) for o in got] == [(i, i * MS, 2, 5) for i in range(3)]
    np.testing.assert_array_equal(got[2].values["joint_pos"], [2, 3, 4])
    assert got[2].values["joint_pos"].dtype == np.float32
    np.testing.assert_array_equal(got[2].values["front"], np.full((8, 8, 3), 2))
    assert link.receive(0) is None
    actions = np.arange(6, dtype=np.float64).reshape(3, 2)
    for sequence in (0, 1):
        port.post(Chunk(observed_ns=1, first_ns=2, dt_ns=3, actions=actions, sequence=sequence, episode=2))
    chunk = link.receive(0)
    assert chunk is not None
    assert (chunk.observed_ns, chunk.first_ns, chunk.dt_ns, chunk.sequence, chunk.episode) == (1, 2, 3, 1, 2)
    np.testing.assert_array_equal(chunk.actions, actions)
    assert link.receive(0) is None
    port.close()


def test_signs_of_life_and_last_words() -> None:
    port = PolicyPort(OBS, 4, 2)
    link = make_link(port, os.getpid())
    time.sleep(0.05)
    assert link.trouble(time.monotonic_ns()) == ""
    assert "no sign of life for" in link.trouble(time.monotonic_ns() + 400 * MS)
    port.last_words("ValueError: no")
    assert link.trouble(time.monotonic_ns()) == "the policy has ended: ValueError: no"
    port.close()


def test_a_killed_policy_is_noticed_at_once() -> None:
    port = PolicyPort(OBS, 4, 2)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    link = make_link(port, child.pid, timeout_s=60.0)
    assert link.trouble(time.monotonic_ns()) == ""
    child.send_signal(signal.SIGKILL)
    began = time.monotonic()
    while not link.trouble(time.monotonic_ns()):
        assert time.monotonic() - began < 5.0
        time.sleep(0.001)
    assert f"({child.pid}) has died" in link.trouble(time.monotonic_ns())
    child.wait()
    port.close()


def test_the_process_of_the_bridge_imports_no_torch_and_no_ros(tmp_path: Path) -> None:
    code = (
        "import sys\nfor name in ('torch', 'rclpy', 'rospy', 'cyclonedds'): sys.modules[name] = None\n"
        "import visuomotor.sim2real.runtime.process, visuomotor.sim2real.runtime.pilot\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
