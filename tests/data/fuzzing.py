"""A sample that is damaged and imported in a process of its own: what test_corrupted.py and test_hostile.py share.

Each import has little memory and time, and a folder of which nothing but the store may change.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from samples import SAMPLES

__all__ = ["PICKLE", "Ask", "Change", "Marks", "Trial", "make_trial", "replaced", "worker"]

_EXTRAS = {
    "lerobot": "pyarrow", "lerobot_png": "pyarrow", "robomimic": "h5py", "aloha": "h5py", "minari": "h5py",
    "umi": "imagecodecs", "ros1": "rosbags", "ros2": "rosbags", "mcap": "rosbags",
}  # fmt: skip
PEAK = 600 << 20  # bytes above what the worker itself takes
Change = Callable[[Path], None]
Ask = Callable[..., dict[str, Any]]


class Marks:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("marker"),))


PICKLE = pickle.dumps(Marks())


def replaced(data: Callable[[bytes], bytes]) -> Change:
    return lambda file: cast(None, file.write_bytes(data(file.read_bytes())))


class Trial:
    """A sample, its values, and a process that imports what is made of it."""

    def __init__(self, name: str, root: Path, ask: Callable[..., dict[str, Any]]) -> None:
        self.name, self.root, self._ask = name, root, ask
        (root / "sample").mkdir(parents=True)
        self.sample = SAMPLES[name](root / "sample")
        self.clean = self._run(self.sample.path, keep=True)
        assert self.clean["kind"] == "read", self.clean
        assert self.clean["skipped"] == {}, self.clean
        assert self.clean["episodes"] >= 1

    def _run(self, path: Path, **more: Any) -> dict[str, Any]:
        return self._ask(
            source=str(path), store=str(self.root / "out" / "a.zarr"), format=self.sample.format, cwd=str(self.root),
            options=self.sample.options, truth=str(self.root / "truth.npz"), **more,
        )  # fmt: skip

    def damaged(self, change: Change, file: str) -> dict[str, Any]:
        """The answer, with ``faults``: what must not be."""
        for folder in ("work", "out"):
            shutil.rmtree(self.root / folder, ignore_errors=True)
        (self.root / "work").mkdir()
        (self.root / "out").mkdir()
        path = self.root / "work" / self.sample.path.name
        copy = shutil.copytree if self.sample.path.is_dir() else shutil.copy
        copy(self.sample.path, path)
        change(path.parent / file)
        if not path.exists():
            return {"kind": "refused", "faults": []}
        before = listing(self.root)
        answer = self._run(path)
        answer["faults"] = self._faults(answer, before)
        return answer

    def _faults(self, answer: dict[str, Any], before: dict[str, int]) -> list[str]:
        faults = []
        if answer["kind"] not in ("read", "refused"):
            faults.append(f"{answer['kind']}: {answer['message']}")
        if (after := listing(self.root)) != before:
            faults.append(f"files changed: {sorted(set(after.items()) ^ set(before.items()))}")
        told = [answer.get("message", ""), *answer.get("skipped", {}).values()]
        faults += [f"no memory: {t}" for t in told if "more memory than there is" in t]
        faults += [f"{len(t)} characters: {t[:200]}" for t in told if len(t) > 4000]
        if answer.get("peak", 0) > self.clean["peak"] + PEAK:
            faults.append(f"took {answer['peak'] >> 20} MB")
        if self.sample.checksums and answer.get("wrong"):
            faults.append(f"wrong values: {answer['wrong']}")
        return faults


def listing(root: Path) -> dict[str, int]:
    """Every file but those of the store, with the time of its last change."""
    out = {}
    for folder, names, files in os.walk(root):
        if folder == str(root / "out"):
            names[:] = [n for n in names if n != "a.zarr"]
        for name in files:
            path = Path(folder) / name
            out[path.relative_to(root).as_posix()] = path.lstat().st_mtime_ns
    return out


@contextmanager
def worker() -> Iterator[Ask]:
    """Send one command to the process that imports in a child."""
    script = Path(__file__).with_name("fuzz_worker.py")
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}  # arenas take address space
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    stdin, stdout = cast(Any, process.stdin), cast(Any, process.stdout)

    def send(**command: Any) -> dict[str, Any]:
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()
        return cast(dict[str, Any], json.loads(stdout.readline()))

    yield send
    stdin.close()
    process.wait(timeout=30)


def make_trial(name: str, folder: Path, ask: Ask) -> Trial:
    """A trial of the sample ``name``; the test is skipped where what writes it is not installed."""
    if name in _EXTRAS:
        pytest.importorskip(_EXTRAS[name], reason=f"{_EXTRAS[name]} is not installed")
    return Trial(name, folder / name, ask)
