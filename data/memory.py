"""How much memory can still be taken. Imports without torch."""

from __future__ import annotations

import resource
from pathlib import Path

__all__ = ["free_ram"]


def free_ram() -> float:
    """Bytes that can still be taken: of the machine, of its control group, and of this process's own limit."""
    meminfo = _table(Path("/proc/meminfo").read_text().replace(":", " "))
    free = min(meminfo["MemAvailable"] * 1024, _left_of_limit())
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = float((group / "memory.current").read_text())
        cached = _table((group / "memory.stat").read_text()).get("inactive_file", 0.0)  # given back on demand
    except OSError:
        return free
    return free if limit == "max" else min(free, float(limit) - used + cached)


def _left_of_limit() -> float:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return float("inf")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return limit - pages * resource.getpagesize()


def _table(text: str) -> dict[str, float]:
    return {line.split()[0]: float(line.split()[1]) for line in text.splitlines()}
