"""Run by test_store_crash.py: forks writers and kills them. One JSON command a line on stdin, one answer on stdout.

Forking from one process that has imported everything makes a trial cost milliseconds, not the second that Python and
Zarr need to start. Nothing of Zarr runs before the fork, so no thread of it is lost.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from visuomotor.data.errors import DataError
from visuomotor.data.recorder import EpisodeRecorder
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

SPECS = {
    "action": ArraySpec(shape=(2,), role="action"),
    "cloud": ArraySpec(shape=(400, 3), role="observation"),  # 4.8 kB a step: sharded
}
COLUMNS = {"task": "str", "seed": "int64"}


def episode(index: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and columns of episode ``index``: a function of the index alone."""
    rng = np.random.default_rng(index)
    length = int(rng.integers(1, 30))
    arrays = {k: rng.normal(size=(length, *s.shape)).astype(np.float32) for k, s in SPECS.items()}
    return arrays, {"task": f"task {index}", "seed": index}


def append(path: str, journal_bytes: int, done: Callable[[], None], n: int) -> None:
    """Append ``n`` episodes and close."""
    with DemoStore.open(path, "a", journal_bytes=journal_bytes) as store:
        for _ in range(n):
            store.append_episode(*episode(store.n_episodes))
            done()


def record(path: str, journal_bytes: int, done: Callable[[], None], n: int) -> None:
    """Record ``n`` episodes step by step and close."""
    with DemoStore.open(path, "a", journal_bytes=journal_bytes) as store, EpisodeRecorder(store) as recorder:
        for _ in range(n):
            arrays, columns = episode(store.n_episodes)
            recorder.start(columns)
            for i in range(len(arrays["action"])):
                recorder.step({k: rows[i] for k, rows in arrays.items()})
            recorder.end()
            done()


def fill_disk(path: str, max_file_bytes: int) -> dict[str, Any]:
    """Append under a limit on the size of one file, as a full disk would refuse it; report what is said and kept."""
    long = {k: np.zeros((200, *s.shape), np.float32) for k, s in SPECS.items()}
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    told: dict[str, Any] = {}
    with DemoStore.open(path, "a") as store:
        store.append_episode(*episode(0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, hard))
        for name, write in (
            ("append", lambda: store.append_episode(long, {"task": "", "seed": 0})),
            ("record", lambda: _record_rows(store, long)),
            ("compact", store.compact),
        ):
            try:
                write()
            except DataError as error:
                told[name] = str(error)
            told[f"{name}_kept"] = store.n_episodes
        told["left"] = sorted(p.name for p in store.journal_path.iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        store.append_episode(*episode(1))
    return told


def _record_rows(store: DemoStore, arrays: dict[str, np.ndarray]) -> None:
    with EpisodeRecorder(store) as recorder:
        recorder.start({"task": "", "seed": 0})
        for i in range(len(arrays["action"])):
            recorder.step({k: rows[i] for k, rows in arrays.items()})
        recorder.end()


def kill_at(call: int) -> None:
    """Make this process die, as by kill -9, at the ``call``-th call that changes names or flushes a file."""
    left = call

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)  # another thread must not go on for the instant that the signal takes
            return real(*args, **kwargs)

        return wrapper

    for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir"):
        setattr(os, name, dying(getattr(os, name)))


def trial(command: dict[str, Any]) -> dict[str, Any]:
    """Fork a writer; kill it after ``acks`` finished episodes and ``delay`` seconds more, or at its ``at``-th call."""
    reader, writer = os.pipe()

    def done() -> None:
        os.write(writer, b"x")

    child = os.fork()
    if child == 0:
        os.close(reader)
        work = {"append": append, "record": record}[command["work"]]
        if command["at"]:
            kill_at(command["at"])
        work(command["path"], command["journal_bytes"], done, command["n"])
        os._exit(0)
    os.close(writer)
    acked = 0
    while not command["at"] and acked < command["acks"] and os.read(reader, 1):
        acked += 1
    if not command["at"]:
        time.sleep(command["delay"])
        os.kill(child, signal.SIGKILL)
    while os.read(reader, 1):
        acked += 1
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    return {"acked": acked, "killed": os.WIFSIGNALED(status), "code": os.waitstatus_to_exitcode(status)}


def main() -> None:
    """Answer commands until stdin ends."""
    for line in sys.stdin:
        command = json.loads(line)
        answer = fill_disk(command["path"], command["limit"]) if command["work"] == "fill" else trial(command)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
