"""Worker processes in a suite's own Python, and the worlds that they share out among them."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np

from visuomotor.envs.suites import server
from visuomotor.envs.suites.install import suite_python
from visuomotor.envs.suites.suites import Suite
from visuomotor.envs.workers import EnvWorkerError, resolve_workers
from visuomotor.envs.worlds import Field, map_fields

__all__ = ["SuiteProcess", "SuiteWorlds"]

_TAIL = 2000  # characters of a dead worker's output that are quoted


class SuiteProcess:
    """One worker process of a suite and the socket to it.

    Args:
        suite: what it runs.
        memory: file descriptor of the shared memory that it inherits.
        gl: MUJOCO_GL; None: the suite's.
        timeout_s: longest wait for one answer [s].
        what: how it is called in messages.

    Raises:
        ConfigError: the suite is not installed.
        EnvWorkerError: from every order: the suite raised (its traceback is the error's note), the process died, or did
            not answer in time. The process is ended then.
    """

    def __init__(self, suite: Suite, memory: int, *, gl: str | None, timeout_s: float, what: str) -> None:
        python = suite_python(suite)
        self._what, self._timeout_s = what, timeout_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by end)
        self.pipe, theirs = socket.socketpair()
        self.pipe.settimeout(timeout_s)
        environ = os.environ | {"OMP_NUM_THREADS": "1", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}
        if gl or suite.gl:
            environ["MUJOCO_GL"] = str(gl or suite.gl)
        # isolated (-I): neither PYTHONPATH nor the folder of the program decides what the suite imports
        command = [str(python), "-I", server.__file__, str(theirs.fileno()), str(memory), suite.adapter]
        fds = (theirs.fileno(), memory)
        with theirs:
            self.process = subprocess.Popen(
                command, env=environ, pass_fds=fds, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
            )
        self.versions: dict[str, str] | None = None

    def order(self, name: str, **arguments: Any) -> None:
        """Send an order; fetch its result by :meth:`result`."""
        try:
            server.send(self.pipe, {"order": name, **arguments})
        except TimeoutError:
            self._late()
        except OSError:
            self._died()

    def result(self) -> Any:
        """The result of the order that was sent; of one that has bytes, a pair."""
        if self.versions is None:  # the first message says what runs there
            self.versions = self._message()[0]
        message, blob = self._message()
        return (message["result"], blob) if blob else message["result"]

    def end(self) -> None:
        """End the process; an idle one leaves by itself when the socket closes."""
        self.pipe.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def _message(self) -> tuple[dict[str, Any], bytes]:
        try:
            message, blob = server.receive(self.pipe)
        except server.ProtocolError as e:
            if self.process.poll() is None:
                raise EnvWorkerError(f"{self._what} does not keep to the protocol: {e}") from None
            self._died()
        except TimeoutError:
            self._late()
        except (EOFError, OSError):
            self._died()
        if "error" in message:
            error = EnvWorkerError(f"{self._what} failed: {message['error']}")
            error.add_note(f"In the worker:\n{message.get('traceback', '')}")
            raise error
        return message, blob

    def _late(self) -> NoReturn:
        self.process.kill()
        raise EnvWorkerError(f"{self._what} did not answer within {self._timeout_s:g} s (timeout_s)") from None

    def _died(self) -> NoReturn:
        code = self.process.wait(timeout=10)
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit status {code}"
        self._log.seek(0)
        tail = self._log.read()[-_TAIL:].decode(errors="replace").strip()
        error = EnvWorkerError(f"{self._what} died with {how}")
        error.add_note(f"Its last output:\n{tail or '(none)'}")
        raise error from None


def _end_all(processes: list[SuiteProcess], memory: list[int]) -> None:
    for fd in memory:
        os.close(fd)
    for p in processes:
        p.pipe.close()
    for p in processes:
        p.end()


class SuiteWorlds:
    """Worlds shared out among the worker processes of a suite: :class:`~visuomotor.envs.worlds.WorldsLike`.

    Args:
        suite: what it is.
        name: of the environment in the suite.
        num_envs: worlds.
        workers: processes; 0 or -1: one a core.
        kinds: further arguments of :meth:`visuomotor.envs.suites.server.Worker.make`.
        gl, timeout_s: as in :class:`SuiteProcess`.

    Raises:
        ConfigError: the suite is not installed.
        EnvWorkerError: the suite refused, failed or died; every worker is ended then.
    """

    def __init__(
        self, suite: Suite, name: str, num_envs: int, *, workers: int, kinds: dict[str, Any], gl: str | None,
        timeout_s: float,
    ) -> None:  # fmt: skip
        count = resolve_workers(workers or -1, num_envs) or 1
        self.bounds = list(pairwise(np.linspace(0, num_envs, count + 1).round().astype(int).tolist()))
        self.processes: list[SuiteProcess] = []
        self._memory = [os.memfd_create("visuomotor-suite")]
        self._finalizer = weakref.finalize(self, _end_all, self.processes, self._memory)
        try:
            for lo, hi in self.bounds:
                what = f"the worker of {suite.name}:{name}, worlds {lo} to {hi - 1},"
                self.processes.append(SuiteProcess(suite, self._memory[0], gl=gl, timeout_s=timeout_s, what=what))
        except BaseException:
            self.close()
            raise
        self._call(self.processes, "make", [{"id": name, "count": hi - lo, **kinds} for lo, hi in self.bounds])
        self.description = self._call(self.processes[:1], "describe")[0]

    def map(self, fields: Sequence[Field], n: int) -> None:
        """Lay the exchanged arrays out in memory that the workers see too."""
        _, size = map_fields(fields, n)
        memory = self._memory.pop()
        try:
            os.ftruncate(memory, size)
            self.arrays, _ = map_fields(fields, n, mmap.mmap(memory, size))
        finally:
            os.close(memory)
        start = min(a.ctypes.data for a in self.arrays.values())
        laid = [
            {
                "name": f.name,
                "shape": list(f.shape),
                "dtype": f.dtype,
                "offset": self.arrays[f.name].ctypes.data - start,
            }
            for f in fields
        ]
        common = {"fields": laid, "n": n, "size": size}
        self._call(self.processes, "map", [{**common, "lo": lo, "hi": hi} for lo, hi in self.bounds])

    def reset(self, seeded: bool) -> None:
        self._call_active("reset", seeded=seeded)

    def advance(self) -> None:
        for name in ("reward", "terminated", "truncated"):
            self.arrays[name].fill(0)  # workers without an active world are not woken
        self._call_active("advance")

    def expert(self) -> None:
        """The experts' actions in the worlds of ``mask``, into ``expert``."""
        self._call_active("expert")

    def reset_one(self, index: int, options: dict[str, Any]) -> None:
        self._call_one(index, "reset_one", options=options)

    def render(self, index: int) -> np.ndarray:
        head, blob = self._call_one(index, "render")
        return np.frombuffer(blob, np.uint8).reshape(head["shape"]).copy()

    def close(self) -> None:
        self._finalizer()

    def _call_one(self, index: int, order: str, **arguments: Any) -> Any:
        i = next(i for i, (lo, hi) in enumerate(self.bounds) if lo <= index < hi)
        local = {"index": index - self.bounds[i][0], **arguments}
        return self._call([self.processes[i]], order, [local])[0]

    def _call_active(self, order: str, **arguments: Any) -> None:
        mask = self.arrays["mask"]
        woken = [p for p, (lo, hi) in zip(self.processes, self.bounds, strict=True) if mask[lo:hi].any()]
        self._call(woken, order, [arguments] * len(woken))

    def _call(
        self, processes: Sequence[SuiteProcess], order: str, arguments: Sequence[dict[str, Any]] | None = None
    ) -> list[Any]:
        if not self._finalizer.alive:
            raise EnvWorkerError("this environment is closed: close() was called, or a worker failed earlier")
        try:
            for p, given in zip(processes, arguments or [{}] * len(processes), strict=True):
                p.order(order, **given)
            return [p.result() for p in processes]
        except BaseException:  # Ctrl-C too: an answer left in a socket would be taken for the next one's
            self.close()
            raise
