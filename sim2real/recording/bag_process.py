"""The process that records a bag: ``python -m visuomotor.sim2real.recording.bag_process <settings as JSON>``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from visuomotor.data.errors import UserError
from visuomotor.sim2real.recording.bag import BagRecorder, BagWriter
from visuomotor.sim2real.transports.choose import TransportConfig, make_transport

__all__ = ["BagProcess", "main"]

_EVERY_S = 0.25  # look for new topics
_END_S = 20.0


class BagProcess:
    """Starts a recording beside this process. It ends with it, whatever becomes of it, and leaves a readable bag.

    Args:
        path: as of :class:`~visuomotor.sim2real.recording.bag.BagWriter`.
        transport: whose topics.
        patient: see :class:`~visuomotor.sim2real.recording.bag.BagRecorder`.

    Raises:
        UserError: it cannot begin, with the reason.
    """

    def __init__(self, path: Path, transport: TransportConfig, patient: Collection[str] = ()) -> None:
        settings = {
            "path": str(path.expanduser().absolute()),
            "transport": asdict(replace(transport, node=f"{transport.node}_bag")),
            "patient": sorted(patient),
            "parent": os.getpid(),
        }
        command = [sys.executable, "-m", "visuomotor.sim2real.recording.bag_process", json.dumps(settings)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        first = self._read()
        if "error" in first:
            self._process.wait(_END_S)
            raise UserError(str(first["error"]))

    def close(self) -> dict[str, Any]:
        """End it; returns messages by topic, or ``error``."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        patience = threading.Timer(_END_S, self._process.kill)  # a disk that hangs must not hold up the session's end
        patience.start()
        try:
            found = self._read()
            self._process.wait()
        finally:
            patience.cancel()
        return found

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return {"error": f"the process that records the bag ended with status {self._process.wait(_END_S)}"}
        found: dict[str, Any] = json.loads(line)
        return found


def main(arguments: Sequence[str]) -> int:
    """Record until a signal comes or the parent is gone."""
    settings = json.loads(arguments[0])
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        counts = _record(settings, stop)
    except UserError as error:
        _say({"error": str(error)})
        return 2
    _say(counts)
    return 0


def _record(settings: dict[str, Any], stop: threading.Event) -> dict[str, Any]:
    writer = BagWriter(Path(settings["path"]))
    transport = None
    try:
        transport = make_transport(TransportConfig(**settings["transport"]))
        recorder = BagRecorder(transport, writer, settings["patient"])
        recorder.discover()
        _say({"recording": str(writer.path)})
        while not stop.wait(_EVERY_S) and os.getppid() == settings["parent"]:
            recorder.discover()
        return recorder.close().to_dict()
    finally:
        if transport is not None:
            transport.close()


def _say(found: dict[str, Any]) -> None:
    try:
        print(json.dumps(found), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the parent is gone: nobody listens any more


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
