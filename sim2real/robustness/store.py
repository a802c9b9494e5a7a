"""Results that a long comparison has already: one line of JSON each, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["ResultStore"]


class ResultStore:
    """Results of conditions on disk, one line each, by what was run."""

    def __init__(self, path: Path) -> None:
        self._path, self._known = path, dict[str, Any]()
        for line in path.read_text().splitlines() if path.exists() else ():
            with suppress(ValueError, KeyError):  # a line that a crash cut off is run again
                row = json.loads(line)
                self._known[row["key"]] = row["found"]

    def get(self, identity: Mapping[str, Any], run: Callable[[], Any]) -> Any:
        """What ``run`` gave for ``identity``, now or before."""
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        if key not in self._known:
            self._known[key] = run()
            with self._path.open("a") as f:
                f.write(json.dumps({"key": key, "of": identity, "found": self._known[key]}) + "\n")
                f.flush()
                os.fsync(f.fileno())
        return self._known[key]
