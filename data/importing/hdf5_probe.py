"""A process that reads HDF5 files first, because damage in them can hang or crash the HDF5 library itself.

It walks a file's groups, attributes, chunk indices and texts, which is all of the library's own parsing. A file that
it survives is then read by the asking process. It is started with the first file, serves all that follow, and ends
with its owner.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from visuomotor.data.errors import DataError

__all__ = ["probe", "serve"]

_SECONDS, _BYTES_PER_SECOND = 10.0, 20e6  # patience: a floor, and the slowest disk
_START_SECONDS = 120.0
_MAX_NODES = 1_000_000
_SERVE = "from visuomotor.data.importing.hdf5_probe import serve; serve()"


class _Prober:
    """The process, and what it said of files: ``{(path, size, time of change): reason or None}``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._known: dict[tuple[str, int, int], str | None] = {}

    def ask(self, path: Path) -> str | None:
        status = path.stat()
        key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
        with self._lock:
            if key not in self._known:
                self._known[key] = self._send(key[0], _SECONDS + status.st_size / _BYTES_PER_SECOND)
            return self._known[key]

    def _send(self, path: str, seconds: float) -> str | None:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(path) + "\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], seconds)
            if ready and process.stdout.readline():
                return None
        except OSError:
            ready = [process.stdout]
        self.stop()
        return "reading it crashes the HDF5 library" if ready else f"reading it takes more than {seconds:.0f} s"

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None or self._owner != os.getpid():
            self._owner = os.getpid()  # a fork must not share its parent's pipes
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _SERVE], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            assert self._process.stdout is not None
            if select.select([self._process.stdout], [], [], _START_SECONDS)[0]:
                self._process.stdout.readline()  # its greeting: starting does not count as reading
        return self._process

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


_PROBER = _Prober()
atexit.register(_PROBER.stop)


def probe(path: Path) -> None:
    """Refuse a file whose reading hangs or crashes HDF5.

    Raises:
        DataError: it does.
        OSError: it is not there.
    """
    if (reason := _PROBER.ask(path)) is not None:
        raise DataError(f"{path} is damaged: {reason}")


def serve() -> None:
    """Answer each path of standard input, in JSON, by a line when its file has been walked. The process's main."""
    from visuomotor.data.importing.hdf5 import Hdf5File

    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        with contextlib.suppress(DataError, OSError, MemoryError), Hdf5File(Path(json.loads(line)), probed=True) as h5:
            _walk(h5)
        print("read", flush=True)


def _walk(h5: Any) -> None:
    """Touch whatever reading would; what is refused there is refused here, and walked past."""
    todo, seen = [("", 0)], 0
    while todo and seen < _MAX_NODES:
        name, depth = todo.pop()
        seen += 1
        with contextlib.suppress(DataError):
            h5.attributes(name)
        with contextlib.suppress(DataError):
            if h5.is_group(name) or not name:
                todo += [(f"{name}/{child}", depth + 1) for child in h5.children(name)] if depth < 16 else []
            else:
                h5.touch(name)
