"""Keys of the terminal as requests: read in the bridge's own process, so that they work whatever the policy does."""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import tty
from typing import Any

from visuomotor.sim2real.runtime.board import RequestBox
from visuomotor.sim2real.runtime.types import Request

__all__ = ["KEYS", "Keyboard", "restore_terminal", "terminal_settings"]

KEYS: dict[str, tuple[Request, str]] = {
    " ": (Request.STOP, "space: STOP, brake and latch"),
    "s": (Request.START, "s: start, or go on after a hold"),
    "h": (Request.HOLD, "h: hold"),
    "t": (Request.TAKE_OVER, "t: take over by the teleoperating device"),
    "b": (Request.HAND_BACK, "b: give back to the policy"),
    "y": (Request.SUCCESS, "y: the episode is a success"),
    "n": (Request.FAILURE, "n: the episode is a failure"),
    "g": (Request.HOME, "g: go home"),
    "r": (Request.RESET, "r: reset after a fault"),
    "k": (Request.HELD, "k: hold it down, where safety.hold_to_run is set"),
    "q": (Request.QUIT, "q: brake and end"),
}


def terminal_settings() -> list[Any] | None:
    """Of the terminal that we read from; None: it is none."""
    return termios.tcgetattr(sys.stdin) if sys.stdin is not None and sys.stdin.isatty() else None


def restore_terminal(settings: list[Any] | None) -> None:
    """Back to what :func:`terminal_settings` found."""
    if settings is not None:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)


class Keyboard:
    """Puts keys into the box of requests, from a thread. Does nothing where there is no terminal.

    Args:
        box: where requests go.
        fd: the terminal, or (in tests) anything that letters can be read from.
    """

    def __init__(self, box: RequestBox, fd: int) -> None:
        self._box, self._fd = box, fd
        self._settings = termios.tcgetattr(fd) if os.isatty(fd) else None
        if self._settings is not None:
            tty.setcbreak(fd)
        self._end = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready = select.select([self._fd, self._end[0]], [], [])[0]
            if self._end[0] in ready:
                return
            letters = os.read(self._fd, 64).decode(errors="ignore")
            if not letters:  # closed
                return
            for letter in letters:
                if letter.lower() in KEYS:
                    self._box.put(KEYS[letter.lower()][0])

    def close(self) -> None:
        """Leave the terminal as it was."""
        os.write(self._end[1], b"x")
        self._thread.join()
        for fd in self._end:
            os.close(fd)
        if self._settings is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._settings)
