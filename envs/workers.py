"""Environments in worker processes, over one block of shared memory. Imports without torch.

Workers are started as ``python -m visuomotor.envs.workers`` and not through ``multiprocessing``: that would run the
user's script again in every worker, so that a script without ``if __name__ == "__main__"`` starts workers without end.
The memory is an anonymous file (memfd) inherited by the workers: nothing can be left in /dev/shm, whoever is killed.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import traceback
import weakref
from collections.abc import Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.envs.worlds import Arrays, Field, MakeEnv, ScoreFn, Worlds, map_fields

__all__ = ["EnvWorkerError", "RemoteWorlds", "resolve_workers"]


class EnvWorkerError(UserError):
    """An environment failed in a worker process, or the process died. The worker's own traceback is its note."""


def resolve_workers(workers: int, num_envs: int) -> int:
    """Number of worker processes for ``workers`` (-1: one for each core), 0 where a single one would gain nothing."""
    if workers < -1:
        raise ConfigError(f"workers={workers}; expected -1 (one a core), 0 (this process) or more")
    if workers >= 0:
        return min(workers, num_envs)
    count = min(len(os.sched_getaffinity(0)), num_envs)
    return count if count > 1 else 0


class _Worker:
    """Parent's end of one process that steps the worlds ``lo..hi``."""

    def __init__(self, lo: int, hi: int, memory_fd: int) -> None:
        self.lo, self.hi = lo, hi
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        environ = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}  # the cores are shared out among workers
        command = [sys.executable, "-m", __name__, str(theirs.fileno()), str(memory_fd)]
        fds = (theirs.fileno(), memory_fd)
        self.process = subprocess.Popen(command, env=environ, pass_fds=fds, stdin=subprocess.DEVNULL)
        theirs.close()
        self.pipe = Connection(ours.detach())

    def send(self, message: bytes) -> None:
        try:
            self.pipe.send_bytes(message)
        except OSError:
            self._died()

    def receive(self) -> Any:
        try:
            ok, value = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self._died()
        if ok:
            return value
        summary, trace = value
        error = EnvWorkerError(f"an environment failed in the worker of {self}: {summary}")
        error.add_note(f"In the worker:\n{trace}")
        raise error

    def _died(self) -> None:
        code = self.process.wait(timeout=10)
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit status {code}"
        raise EnvWorkerError(f"the worker process of {self} died with {how}") from None

    def __str__(self) -> str:
        return f"worlds {self.lo} to {self.hi - 1}"


def _shut_down(workers: list[_Worker]) -> None:
    for w in workers:
        w.pipe.close()  # end of file is the order to leave
    for w in workers:
        try:
            w.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            w.process.kill()
            w.process.wait()


class RemoteWorlds:
    """The same as :class:`~visuomotor.envs.worlds.Worlds`, with the worlds shared out among processes.

    Raises:
        ConfigError: a factory cannot be sent to another process.
        EnvWorkerError: an environment raised, or its process died; every worker is shut down then.
    """

    def __init__(
        self,
        make_env: Sequence[MakeEnv],
        fields: Sequence[Field],
        workers: int,
        limit: int | None,
        score: ScoreFn | None,
    ) -> None:
        n = len(make_env)
        _, size = map_fields(fields, n)
        fd = os.memfd_create("visuomotor-worlds")
        os.ftruncate(fd, size)
        self.arrays, _ = map_fields(fields, n, mmap.mmap(fd, size))
        bounds = np.linspace(0, n, workers + 1).round().astype(int).tolist()
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _shut_down, self._workers)
        try:
            for lo, hi in pairwise(bounds):
                self._workers.append(_Worker(lo, hi, fd))
        finally:
            os.close(fd)
        try:
            orders = [
                cloudpickle.dumps((list(make_env[w.lo : w.hi]), list(fields), n, w.lo, w.hi, limit, score))
                for w in self._workers
            ]
        except (pickle.PicklingError, TypeError, AttributeError) as e:
            self.close()
            raise ConfigError(f"an environment factory cannot be sent to a worker ({e}); use workers=0") from None
        self._call(self._workers, orders)

    def reset(self, seeded: bool) -> None:
        self._call_active("reset", seeded)

    def advance(self) -> None:
        for name in ("reward", "terminated", "truncated"):
            self.arrays[name].fill(0)  # workers without an active world are not woken
        self._call_active("advance")

    def reset_one(self, index: int, options: dict[str, Any]) -> None:
        self._call_one(index, "reset_one", options)

    def render(self, index: int) -> np.ndarray:
        frame: np.ndarray = self._call_one(index, "render")
        return frame

    def close(self) -> None:
        self._finalizer()

    def _call_one(self, index: int, method: str, *args: Any) -> Any:
        worker = next(w for w in self._alive() if w.lo <= index < w.hi)
        return self._call([worker], [pickle.dumps((method, index - worker.lo, *args))])[0]

    def _call_active(self, method: str, *args: Any) -> None:
        mask = self.arrays["mask"]
        woken = [w for w in self._alive() if mask[w.lo : w.hi].any()]
        self._call(woken, [pickle.dumps((method, *args))] * len(woken))

    def _call(self, workers: Sequence[_Worker], messages: Sequence[bytes]) -> list[Any]:
        try:
            for w, m in zip(workers, messages, strict=True):
                w.send(m)
            return [w.receive() for w in workers]
        except BaseException:  # Ctrl-C too: an answer left in a pipe would be taken for the next one's
            self.close()
            raise

    def _alive(self) -> list[_Worker]:
        if not self._finalizer.alive:
            raise EnvWorkerError("this environment is closed: close() was called, or a worker failed earlier")
        return self._workers


def _serve(pipe: Connection, memory_fd: int) -> None:
    """Answer the parent's orders until it closes the pipe or is gone."""
    make_env, fields, n, lo, hi, limit, score = pickle.loads(pipe.recv_bytes())
    _, size = map_fields(fields, n)
    whole, _ = map_fields(fields, n, mmap.mmap(memory_fd, size))
    arrays: Arrays = {k: a[lo:hi] for k, a in whole.items()}
    worlds = Worlds(make_env, arrays, limit, score)
    pipe.send_bytes(pickle.dumps((True, None)))
    while True:
        try:
            method, *args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            worlds.close()
            return
        pipe.send_bytes(pickle.dumps((True, getattr(worlds, method)(*args))))


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    pipe = Connection(int(sys.argv[1]))
    try:
        _serve(pipe, int(sys.argv[2]))
    except (EOFError, ConnectionError):  # the parent has gone
        return
    except Exception as e:
        pipe.send_bytes(pickle.dumps((False, (f"{type(e).__name__}: {e}", traceback.format_exc()))))


if __name__ == "__main__":
    _main()
