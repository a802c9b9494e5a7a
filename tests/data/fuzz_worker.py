"""Imports in a child with little memory and little time: run by test_corrupted.py, one JSON command a line.

The parent never touches zarr, whose threads would not survive a fork.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.errors import UserError
from visuomotor.data.importing.registry import open_source
from visuomotor.data.importing.run import import_demos
from visuomotor.data.store import DemoStore

MEMORY, DISK, SECONDS = 1 << 30, 64 << 20, 20  # of one import: bytes, bytes of one file, processor time
for _name in ("h5py", "pyarrow.parquet", "av", "cv2", "yaml", "sqlite3", "imagecodecs", "lz4.frame", "zstandard"):
    try:
        importlib.import_module(_name)  # once here, not in each child
    except ImportError:
        continue


def limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    now = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (DISK, DISK))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def attempt(command: dict[str, Any]) -> dict[str, Any]:
    try:
        source = open_source(command["source"], command["format"], command["options"])
        try:
            report = import_demos(source, command["store"], workers=2)
        finally:
            source.close()
    except UserError as error:
        cause = error.__cause__
        return {"kind": "refused", "message": str(error), "cause": cause and "".join(traceback.format_exception(cause))}
    except BaseException:
        return {"kind": "escaped", "message": traceback.format_exc()}
    return {
        "kind": "read",
        "skipped": report.skipped,
        "findings": [str(f) for f in report.findings],
        "episodes": report.episodes,
        "wrong": wrong(command),
    }


def wrong(command: dict[str, Any]) -> list[str]:
    """Arrays in the store that are not what the undamaged sample held under that id; a sample's own are kept."""
    with DemoStore.open(command["store"]) as store:
        ids = store.episode_columns["source_episode"].tolist()
        held: dict[str, Any] = {f"{ids[i]}/{k}": v for i in range(len(ids)) for k, v in store.episode(i).items()}
    if command.get("keep"):
        np.savez(command["truth"], **held)
        return []
    with np.load(command["truth"]) as truth:
        return [n for n, v in held.items() if n in truth and not np.array_equal(v, truth[n])]


def handle(command: dict[str, Any]) -> dict[str, Any]:
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        os.chdir(command["cwd"])
        limit()
        answer = attempt(command)
        answer["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        with os.fdopen(writes, "w") as f:
            json.dump(answer, f)
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as f:
        ready = select.select([f], [], [], 3 * SECONDS)[0]
        if not ready:
            os.kill(child, signal.SIGKILL)
        text = f.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not ready:
        return {"kind": "hung", "message": f"no end after {3 * SECONDS} s"}
    return json.loads(text) if text else {"kind": "crashed", "message": f"exit status {status}"}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(handle(json.loads(line))), flush=True)
