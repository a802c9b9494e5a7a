"""Processes and real middleware: the bridge beside a policy, a robot that shares no code with it, and kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ros_harness import NODES, Robot, environment, free_domain, running, until

pytest.importorskip("cyclonedds")
SPEED, ACCELERATION = 0.3, 8.0
TOPICS = {"forward_position": "/forward/commands", "joint_trajectory": "/arm/joint_trajectory"}
KINDS = {"forward_position": "forward", "joint_trajectory": "trajectory"}


class Worker:
    """A session in a process of its own, whose output is read line by line."""

    def __init__(self, mode: str, seconds: float, env: dict[str, str]) -> None:
        command = [sys.executable, str(NODES / "session_worker.py"), mode, TOPICS[mode], str(seconds), str(SPEED)]
        env = {**env, "PYTHONPATH": f"{env['PYTHONPATH']}{os.pathsep}{NODES}"}
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
        self.lines: list[str] = []
        self.bridge = self.next("bridge")["bridge"]

    def next(self, *keys: str) -> dict[str, Any]:
        """The next line of JSON that has one of these keys; what the bridge prints comes in between."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("{") and (found := json.loads(line)).keys() & set(keys):
                return found
        raise AssertionError("".join(self.lines))


@contextmanager
def session(mode: str, seconds: float, log: Path) -> Iterator[tuple[Worker, Robot]]:
    env = environment(free_domain())
    with running(Robot("cyclone", log, mode, TOPICS[mode], env, "--rate", "125")) as robot:
        worker = Worker(mode, seconds, env)
        try:
            yield worker, robot
        finally:
            worker.process.kill()
            worker.process.wait()


def moves(robot: Robot, mode: str) -> bool:
    """Whether commands have moved the first joint by half a radian's tenth or more."""
    records = robot.records(KINDS[mode])[-1:]
    if not records:
        return False
    first = records[0]["data"][0] if mode == "forward_position" else records[0]["points"][0][1][0]
    return abs(first) > 0.05


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def test_a_session_over_dds_moves_a_robot_that_shares_no_code_with_it(tmp_path: Path) -> None:
    with session("forward_position", 3.0, tmp_path / "log") as (worker, robot):
        result = worker.next("episodes", "error")
        assert "error" not in result, worker.lines
        assert [e["ended_by"] for e in result["episodes"]] == ["time"], worker.lines
        assert result["faults"] == []
        q = np.array([r["data"] for r in robot.records("forward")], dtype=np.float64)
        assert worker.process.wait(20) == 0
    assert np.isfinite(q).all()
    assert len(q) > 100
    assert abs(q[:, 0]).max() > 0.1
    assert np.abs(np.diff(q, axis=0)).max() < 0.1  # some may be lost on a busy machine, but nothing jumps
    assert result["latencies"]["state_to_command"]["count"] > 50
    assert result["counts"]["chunks"] > 3


@pytest.mark.slow
def test_a_killed_bridge_leaves_an_arm_that_comes_to_rest_by_its_last_trajectory(tmp_path: Path) -> None:
    with session("joint_trajectory", 60.0, tmp_path / "log") as (worker, robot):
        until(lambda: moves(robot, "joint_trajectory"), what="motion")
        os.kill(worker.bridge, signal.SIGKILL)
        killed = time.monotonic()
        assert "ended with status -9" in worker.next("error")["error"]
        time.sleep(1.5)
        sent = robot.records("trajectory")
        desired = [r for r in robot.records("desired") if r["t"] > killed]
    assert not [r["refused"] for r in sent if r["refused"]]
    last = sent[-1]["points"]
    assert last[-1][2] == [0.0] * 6
    table = np.array([[t, p[0], v[0]] for t, p, v in last])[1:]  # the first is wherever the motion was then
    assert np.abs(np.diff(table[:, 2]) / np.diff(table[:, 0])).max() <= ACCELERATION * 1.01
    still = [r for r in desired if r["t"] > killed + 1.0]
    assert still
    assert all(r["v"] == [0.0] * 6 for r in still)
    assert len({tuple(r["q"]) for r in still}) == 1


@pytest.mark.slow
def test_a_killed_policy_makes_the_bridge_brake_fault_and_end(tmp_path: Path) -> None:
    with session("forward_position", 60.0, tmp_path / "log") as (worker, robot):
        until(lambda: moves(robot, "forward_position"), what="motion")
        worker.process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: gone(worker.bridge), what="the end of the bridge")
        sent = robot.records("forward")
    after = [r for r in sent if r["t"] > killed]
    q = np.array([r["data"] for r in after], dtype=np.float64)
    assert np.isfinite(q).all()
    assert (q[-5:] == q[-1]).all()  # at rest
    moved = [r["t"] for r, a, b in zip(after[1:], q[:-1], q[1:], strict=True) if (a != b).any()]
    assert max(moved, default=killed) - killed < 1.0  # 0.1 s and the brake on a quiet machine
