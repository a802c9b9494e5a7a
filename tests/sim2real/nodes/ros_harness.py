"""Starts robots and other nodes as processes in the environments that scripts/make_ros_venvs.sh makes."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

__all__ = [
    "NODES",
    "Cable",
    "Driven",
    "Robot",
    "environment",
    "free_domain",
    "python_of",
    "ros_master",
    "running",
    "until",
]

NODES = Path(__file__).parent
ROOT = NODES.parents[2]
_count = itertools.count()
N = TypeVar("N", "Robot", "Driven")


def python_of(peer: str) -> str:
    """The interpreter that has this middleware; the test is skipped without, or fails when REQUIRE_ROS=1."""
    if peer in ("cyclone", "dds"):
        return sys.executable
    if peer == "rospy":
        from visuomotor.sim2real.transports import rospy

        if rospy.available() and Path("/usr/bin/rosmaster").exists():
            return sys.executable
    path = ROOT / ".ros" / peer / "bin" / "python"
    if path.exists():
        return str(path)
    message = f"{peer} is not here: run scripts/make_ros_venvs.sh"
    if os.environ.get("REQUIRE_ROS") == "1":
        pytest.fail(message)
    pytest.skip(message)


def free_domain() -> int:
    """A domain of this test's own; above 101 its ports could be in use for outgoing connections."""
    return 1 + (os.getpid() * 11 + next(_count)) % 100


def environment(domain: int, **more: str) -> dict[str, str]:
    """Of a node's process, without what another environment's ROS has left in ours."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ROS_", "RMW_", "AMENT_", "CYCLONEDDS_"))}
    for name in ("LD_LIBRARY_PATH", "_ROS_WHEELS_BOOTSTRAP_COMPLETE", "PYTHONPATH"):
        env.pop(name, None)
    env |= {
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "PYTHONPATH": str(ROOT / ".typing"),
    }
    return env | {"OMP_NUM_THREADS": "1"} | more


def until(condition: Callable[[], Any], timeout_s: float = 20.0, what: str = "it") -> Any:
    """What the condition returns once it is true."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.01)
    return value


class Robot:
    """One of the robots beside this file, in a process."""

    def __init__(
        self, peer: str, log: Path, mode: str, topic: str, env: dict[str, str], *options: str, host: str = ""
    ) -> None:
        script = {"cyclone": "robot_cyclone.py", "rospy": "robot_rospy.py"}.get(peer, "robot_rclpy.py")
        self.log = log
        python = "/usr/bin/python3" if peer == "rospy" else python_of(peer)
        command = [*_on(host), python, str(NODES / script), str(log), mode, topic, *options]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, text=True)

    def set(self, **values: Any) -> None:
        """Change the arm, for instance ``silent=True``."""
        assert self.process.stdin is not None
        print(json.dumps(values), file=self.process.stdin, flush=True)

    def records(self, kind: str) -> list[dict[str, Any]]:
        """What it has logged of this kind so far."""
        return read_log(self.log, kind)

    def quit(self) -> None:
        """Let it say goodbye, as a node that is shut down does."""
        if self.process.poll() is None:
            self.set(quit=True)
            self.process.wait(20)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Driven:
    """The whole bridge, in a process of whichever environment has the transport: ``bridge_driver.py``."""

    def __init__(self, python: str, log: Path, env: dict[str, str], *, host: str = "", **settings: Any) -> None:
        self.log = log
        command = [*_on(host), python, str(NODES / "bridge_driver.py"), json.dumps({**settings, "log": str(log)})]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    def ask(self, request: str) -> None:
        assert self.process.stdin is not None
        print(request, file=self.process.stdin, flush=True)

    def records(self, kind: str) -> list[dict[str, Any]]:
        return read_log(self.log, kind)

    @property
    def state(self) -> str:
        """Of the bridge, the newest."""
        states = self.records("state")
        return states[-1]["state"] if states else ""

    @property
    def fault(self) -> str:
        states = self.records("state")
        return states[-1]["fault"] if states else ""

    def wait_for(self, state: str, timeout_s: float = 30.0) -> None:
        until(lambda: self.state == state, timeout_s, f"state {state}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def read_log(path: Path, kind: str) -> list[dict[str, Any]]:
    """Records of one kind in a file of JSON lines that may still be written."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [r for r in map(json.loads, filter(_whole, lines)) if r["kind"] == kind]


def _whole(line: str) -> bool:
    return line.endswith("}")


def _on(host: str) -> list[str]:
    return ["ip", "netns", "exec", host] if host else []


class Cable:
    """Between two hosts, which are network namespaces of this machine."""

    def __init__(self) -> None:
        number = f"{os.getpid()}_{next(_count)}"
        self.hosts = f"robot_{number}", f"bridge_{number}"
        self.interfaces = "to_bridge", "to_robot"
        try:
            for host in self.hosts:
                _ip("netns", "add", host)
        except (OSError, subprocess.CalledProcessError) as error:
            self.remove()
            pytest.skip(f"network namespaces cannot be made here: {error}")
        a, b = self.interfaces
        _ip("link", "add", a, "netns", self.hosts[0], "type", "veth", "peer", "name", b, "netns", self.hosts[1])
        for i, (host, interface) in enumerate(zip(self.hosts, self.interfaces, strict=True)):
            _ip("-n", host, "address", "add", f"10.77.0.{i + 1}/24", "dev", interface)
            for name in ("lo", interface):
                _ip("-n", host, "link", "set", name, "up", "multicast", "on")
            _ip("-n", host, "route", "add", "224.0.0.0/4", "dev", interface)

    def plug(self, state: bool) -> None:
        _ip("-n", self.hosts[1], "link", "set", self.interfaces[1], "up" if state else "down")

    def remove(self) -> None:
        for host in self.hosts:
            subprocess.run(["ip", "netns", "delete", host], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def running(node: N) -> Iterator[N]:
    """Ends the process whatever happens."""
    try:
        yield node
    finally:
        node.kill()


@contextmanager
def ros_master() -> Iterator[dict[str, str]]:
    """A ROS 1 master on a free port; yields the variables that lead to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"ROS_MASTER_URI": f"http://127.0.0.1:{port}", "ROS_IP": "127.0.0.1", "ROS_HOSTNAME": "127.0.0.1"}
    process = subprocess.Popen(
        ["/usr/bin/rosmaster", "--core", "-p", str(port)],
        env=environment(0, **variables, PYTHONPATH=""), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: _answers(port), what="a ROS master")
        yield variables
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
