"""A session: the bridge in a process of its own, the policy in this one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from visuomotor.data.errors import ConfigError
from visuomotor.sim2real.runtime.board import RequestBox, StatusBoard
from visuomotor.sim2real.runtime.build import Setup
from visuomotor.sim2real.runtime.document import Assignment
from visuomotor.sim2real.runtime.keyboard import restore_terminal, terminal_settings
from visuomotor.sim2real.runtime.link import PolicyPort, run_policy
from visuomotor.sim2real.runtime.pilot import Pilot
from visuomotor.sim2real.transports.choose import TransportConfig

__all__ = ["Session"]


class Session:
    """Starts the bridge and serves it with a policy until it ends.

    Shared memory has no names and belongs to the kernel, so nothing is left behind, whoever is killed. Without this
    process the bridge brakes, waits for rest and ends; without the bridge this process ends.

    Args:
        setup: what the bridge does.
        transport: how it reaches the robot.
        options: further fields of :class:`Assignment` (``record``, ``bag``, ``task``, ``keyboard``).

    Attributes:
        board: what the bridge shows.
        requests: what it is asked for.
        process: of the bridge.
    """

    def __init__(self, setup: Setup, transport: TransportConfig, **options: Any) -> None:
        self._setup = setup
        self.board, self.requests = StatusBoard(), RequestBox()
        self._result = os.memfd_create("visuomotor", os.MFD_CLOEXEC)
        self._port: PolicyPort | None = None
        if setup.policy is not None and setup.policy.acts:
            spec = setup.policy.spec
            self._port = PolicyPort(setup.policy.step_obs, spec.window.horizon, spec.action.size)
        job = Assignment(
            setup=setup,
            transport=transport,
            board=self.board.fd,
            requests=self.requests.fds,
            link=None if self._port is None else self._port.fds,
            policy_pid=os.getpid(),
            result=self._result,
        )
        self._terminal = terminal_settings()
        self.process = _spawn(replace(job, **options))

    def run(self, load: Callable[[], Pilot] | None) -> dict[str, Any]:
        """Serve until the bridge ends; returns its summary. ``load`` makes the policy's pilot, warm; None: no policy.

        Raises:
            ConfigError: the bridge could not begin, or was killed.
        """
        ended = os.pidfd_open(self.process.pid)
        try:
            with _patient():
                if load is not None and self._port is not None:
                    self._serve(load, self._port, ended)
                self.process.wait()
        finally:
            os.close(ended)
            restore_terminal(self._terminal)
        return self._read()

    def _serve(self, load: Callable[[], Pilot], port: PolicyPort, ended: int) -> None:
        try:
            pilot = load()
            port.ready()
            run_policy(port, pilot, [ended])
        except BaseException as e:
            port.last_words(f"{type(e).__name__}: {e}")
            self.process.wait()
            raise
        finally:
            port.close()

    def _read(self) -> dict[str, Any]:
        text = os.pread(self._result, os.fstat(self._result).st_size, 0)
        os.close(self._result)
        if not text:
            raise ConfigError(f"the bridge's process ended with status {self.process.returncode}, without a summary")
        result: dict[str, Any] = json.loads(text)
        if "error" in result:
            raise ConfigError(str(result["error"]))
        return result


def _spawn(job: Assignment) -> subprocess.Popen[bytes]:
    fd = job.write()
    command = [sys.executable, "-m", "visuomotor.sim2real.runtime.process", str(fd)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # its products are tiny
    try:
        return subprocess.Popen(command, pass_fds=(fd, *job.fds), env=environment)
    finally:
        os.close(fd)


@contextmanager
def _patient() -> Iterator[None]:
    """Ctrl-C is the bridge's, which brakes first; after the third this process does not wait any longer."""
    count = 0

    def once_more(number: int, frame: object) -> None:
        nonlocal count
        count += 1
        if count >= 3:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, once_more)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
