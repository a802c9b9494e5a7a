"""Imports in a child that is killed after a while: run by test_importing.py, one JSON command a line.

The parent never touches zarr, whose threads would not survive a fork.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

from visuomotor.data.importing.registry import open_source
from visuomotor.data.importing.run import import_demos


def run(source: str, store: str, workers: int) -> None:
    demos = open_source(source)
    import_demos(demos, store, workers=workers, commit_seconds=0.0)
    demos.close()


def handle(command: dict[str, Any]) -> dict[str, Any]:
    child = os.fork()
    if child == 0:
        try:
            run(command["source"], command["store"], command["workers"])
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    deadline = time.monotonic() + command["seconds"]
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return {"finished": True, "status": os.waitstatus_to_exitcode(status)}
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return {"finished": False}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(handle(json.loads(line))), flush=True)
