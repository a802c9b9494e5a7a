"""The client's end of Isaac Gym's process: start, messages, shared memory, errors.

Isaac Gym (Preview 4) exists for Python 3.6 to 3.8 only (the server needs 3.7 or 3.8), so it runs under a Python of its
own and sees the file ``isaac_server.py`` alone. The memory is an anonymous file that the process inherits: nothing is
left behind, whoever is killed. The process ends when its socket is closed, be it by :meth:`IsaacProcess.close` or by
our own end.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.envs.sim.isaac_server import PROTOCOL

__all__ = ["ENVIRONMENT_VARIABLE", "IsaacError", "IsaacProcess", "isaac_python"]

ENVIRONMENT_VARIABLE = "VISUOMOTOR_ISAAC_PYTHON"
_PATIENCE_S = 900.0  # for one answer: thousands of worlds take minutes to make
_ALIGN = 64


class IsaacError(UserError):
    """Isaac Gym failed, or its process died. The server's traceback, or the end of its log, is the note."""


def isaac_python(setting: str) -> str:
    """The Python of the Isaac Gym installation: the setting, else the environment variable.

    Raises:
        ConfigError: neither is given, or there is no such program.
    """
    python = setting or os.environ.get(ENVIRONMENT_VARIABLE, "")
    if not python:
        raise ConfigError(
            "the engine isaac needs the Python 3.7 or 3.8 of an Isaac Gym (Preview 4) installation: set "
            f"engine.isaac_python=/path/to/python or {ENVIRONMENT_VARIABLE}"
        )
    found = shutil.which(os.path.expanduser(python))
    if found is None:
        raise ConfigError(f"engine.isaac_python={python}: there is no such program")
    return found


class IsaacProcess:
    """One process with one simulation.

    Args:
        python: its interpreter.
        arrays: {name: (type, shape)} of the shared memory.

    Attributes:
        arrays: the shared memory.
        folder: where the process finds files; removed at the end.

    Raises:
        IsaacError: the process did not start, or is of another version.
    """

    def __init__(self, python: str, arrays: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        self._table: list[tuple[str, str, tuple[int, ...], int]] = []
        size = 0
        for name, (kind, shape) in arrays.items():
            self._table.append((name, kind, shape, size))
            size += -(-int(np.prod(shape)) * np.dtype(kind).itemsize // _ALIGN) * _ALIGN
        memory_fd = os.memfd_create("visuomotor-isaac")
        os.ftruncate(memory_fd, max(size, _ALIGN))
        memory = mmap.mmap(memory_fd, 0)
        self.arrays = {
            name: np.frombuffer(memory, kind, int(np.prod(shape)), at).reshape(shape)
            for name, kind, shape, at in self._table
        }
        self.folder = Path(tempfile.mkdtemp(prefix="visuomotor-isaac-"))
        self._log = self.folder / "isaacgym.log"
        self._read = 0  # of the log
        self._link, theirs = socket.socketpair()
        self._link.settimeout(_PATIENCE_S)
        self._lines = self._link.makefile("r", encoding="utf-8")
        fds = (theirs.fileno(), memory_fd)
        # a copy: in its own folder modules of ours (random.py) would hide those of the standard library
        server = shutil.copy(Path(__file__).with_name("isaac_server.py"), self.folder)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, str(server), *map(str, fds)], env=_environment(python), pass_fds=fds, cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        theirs.close()
        os.close(memory_fd)
        self._finalizer = weakref.finalize(self, _end, self._link, self._lines, self._process, self.folder)
        hello = self._receive()
        if hello.get("hello") != "visuomotor-isaac" or hello.get("protocol") != PROTOCOL:
            self.close()
            raise IsaacError(f"{python} answered {hello}; expected visuomotor-isaac, protocol {PROTOCOL}")
        self.python_version: str = hello["python"]

    def call(self, do: str, **message: Any) -> dict[str, Any]:
        """Send an order, wait for its answer.

        Raises:
            IsaacError: the order failed, or the process died; it is ended then.
        """
        if not self._finalizer.alive:
            raise IsaacError("this simulation is closed: close() was called, or Isaac Gym failed earlier")
        try:
            self._link.sendall((json.dumps({"do": do, **message}) + "\n").encode())
            answer = self._receive()
        except IsaacError:
            raise
        except OSError:
            raise self._died() from None
        except BaseException:  # Ctrl-C: an answer left in the socket would be taken for the next one's
            self.close()
            raise
        if not answer["ok"]:
            error = IsaacError(f"Isaac Gym failed: {answer['error']}")
            error.add_note(f"In its process:\n{answer['traceback']}")
            self.close()
            raise error
        return answer

    def build(self, **message: Any) -> list[dict[str, Any]]:
        """Make the worlds; returns the names Isaac Gym has for things, one entry an actor."""
        arrays = [list(row) for row in self._table]
        names: list[dict[str, Any]] = self.call("build", arrays=arrays, folder=str(self.folder), **message)["names"]
        return names

    def complaints(self, word: str) -> int:
        """How many lines with ``word`` the process has logged since the last question."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            text = log.read()
            self._read = log.tell()
        return sum(word in line.lower() for line in text.decode(errors="replace").splitlines())

    def close(self) -> None:
        """End the process and remove its folder; twice does no harm."""
        self._finalizer()

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except TimeoutError:
            error = IsaacError(f"Isaac Gym gave no answer within {_PATIENCE_S:.0f} s")
            self.close()
            raise error from None
        except OSError:
            line = ""
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _died(self) -> IsaacError:
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            code = 0
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit status {code}"
        error = IsaacError(f"Isaac Gym's process died with {how}")
        tail = self._log.read_text(errors="replace").splitlines()[-30:] if self._log.is_file() else []
        error.add_note("The end of its log:\n" + "\n".join(tail))
        self.close()
        return error


def _environment(python: str) -> dict[str, str]:
    """Ours, with what Isaac Gym looks for beside its Python: ``libpython3.8.so``, and ``ninja`` to build gymtorch."""
    folder = Path(python).parent
    found = dict(os.environ)
    for name, path in (("LD_LIBRARY_PATH", folder.parent / "lib"), ("PATH", folder)):
        found[name] = os.pathsep.join(filter(None, (str(path), found.get(name, ""))))
    return found


def _end(link: socket.socket, lines: Any, process: subprocess.Popen[bytes], folder: Path) -> None:
    lines.close()
    with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)  # end of file is the order to leave
    link.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)
