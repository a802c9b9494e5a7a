"""The bridge's process: ``python -m visuomotor.sim2real.runtime.process <descriptor>``. Without torch."""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from visuomotor.data.errors import UserError
from visuomotor.sim2real.recording.session import SessionRecording
from visuomotor.sim2real.runtime.board import RequestBox, StatusBoard
from visuomotor.sim2real.runtime.bridge import Bridge
from visuomotor.sim2real.runtime.build import make_bridge
from visuomotor.sim2real.runtime.document import Assignment
from visuomotor.sim2real.runtime.keyboard import Keyboard
from visuomotor.sim2real.runtime.link import SharedLink
from visuomotor.sim2real.runtime.pacing import Pacer
from visuomotor.sim2real.runtime.streamer import loop_hz
from visuomotor.sim2real.runtime.types import Request
from visuomotor.sim2real.transports.choose import make_transport

__all__ = ["main", "run"]

_SWITCH_S = 0.0005  # a thread of the transport gives the interpreter back after so long


def main(arguments: Sequence[str]) -> int:
    """Run the bridge that the descriptor ``arguments[0]`` describes; the exit status is 2 after a user's mistake."""
    job = Assignment.read(int(arguments[0]))
    try:
        result = run(job)
    except UserError as e:
        result = {"error": str(e)}
    os.ftruncate(job.result, 0)
    os.pwrite(job.result, json.dumps(result).encode(), 0)
    return 2 if "error" in result else 0


def run(job: Assignment) -> dict[str, Any]:
    """Tick until the session ends; returns its summary.

    Raises:
        UserError: a robot, policy and transport that do not go together, or a store that takes no recording of them.
    """
    sys.setswitchinterval(_SWITCH_S)
    board, box = StatusBoard(job.board), RequestBox(job.requests)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: box.put(Request.QUIT))
    recording = SessionRecording(job.setup, job.transport, record=job.record, bag=job.bag, task=job.task)
    recorded: dict[str, Any] = {}
    with ExitStack() as stack:
        stack.callback(lambda: recorded.update(recording.close()))
        transport = make_transport(job.transport)
        stack.callback(transport.close)
        bridge = make_bridge(
            job.setup, transport, link=_link(job), board=board, requests=box, listeners=recording.listeners
        )
        stack.callback(bridge.parts.observer.close)
        period_ns = round(1e9 / loop_hz(job.setup.robot))
        pacer = Pacer(period_ns, lambda: bridge.parts.observer.state_ns, transport.now_ns)
        if job.keyboard:
            stack.callback(Keyboard(box, 0).close)
        printer = _Printer()
        stack.callback(printer.close)
        _loop(bridge, pacer, box, printer)
    return {**bridge.summary(), "overruns": pacer.overruns, "transport": transport.name, "recorded": recorded}


def _link(job: Assignment) -> SharedLink | None:
    policy = job.setup.policy
    if job.link is None or policy is None:
        return None
    return SharedLink(
        policy.step_obs,
        policy.spec.window.horizon,
        policy.spec.action.size,
        timeout_s=job.setup.safety.policy_timeout_s,
        fds=job.link,
        pid=job.policy_pid,
    )


def _loop(bridge: Bridge, pacer: Pacer, box: RequestBox, printer: _Printer) -> None:
    parent, orphaned = os.getppid(), False
    gc.collect()
    gc.freeze()  # what lives now lives to the end: later collections need not look at it
    while not bridge.done:
        bridge.tick(pacer.wait())
        printer.put(bridge.log.take())
        if not orphaned and os.getppid() != parent:  # nobody is left to end the session
            orphaned = True
            box.put(Request.QUIT)


class _Printer:
    """Prints lines from a thread: a terminal that is stopped must not stop the arm's loop."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._lines.put(line)

    def close(self) -> None:
        self._lines.put(None)
        self._thread.join(1.0)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
