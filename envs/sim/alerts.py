"""What MuJoCo warns of, kept out of the console and counted.

Left alone, MuJoCo prints a warning for every world that diverges and appends it to ``MUJOCO_LOG.TXT`` in the folder
where the program was started. A simulation reports the same through ``diverged()`` and ``overflow()``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

import mujoco

__all__ = ["Alerts"]

# How the texts begin (mju_warningText). MuJoCo gives each once a world until that world is reset.
_UNSTABLE = "Nan, Inf or huge value"
_FULL = {"Too many contacts": "contacts", "Insufficient arena memory": "constraints"}


class Alerts:
    """Within ``with alerts:`` MuJoCo's warnings come here: full buffers are counted, instabilities dropped.

    All others go to the logger of this module. Threads of MuJoCo may warn at the same time.
    """

    def __init__(self) -> None:
        self._full: list[str] = []
        self._before: Callable[[str], None] | None = None

    def counts(self) -> dict[str, int]:
        """How many warnings of full buffers came since the last call, by kind."""
        seen, self._full = self._full, []
        return {kind: seen.count(kind) for kind in _FULL.values()}

    def __enter__(self) -> Alerts:
        self._before = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        mujoco.set_mju_user_warning(self._before)

    def _receive(self, text: str) -> None:
        if text.startswith(_UNSTABLE):
            return
        for start, kind in _FULL.items():
            if text.startswith(start):
                self._full.append(kind)
                return
        logging.getLogger(__name__).warning("MuJoCo: %s", text)
