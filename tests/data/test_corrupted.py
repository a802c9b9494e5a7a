"""Damaged and hostile files of every format: read with right values or refused with one error, and nothing else.

Each variant is imported in a process of its own with little memory and time, in a folder of which nothing but the
store may change. In every sample but those with checksums a flipped bit of a value cannot be noticed by anybody.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

_HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("samples", _HERE / "samples.py")
assert _spec is not None
assert _spec.loader is not None
samples = importlib.util.module_from_spec(_spec)
sys.modules["samples"] = samples  # its dataclasses look there
_spec.loader.exec_module(samples)

_EXTRAS = {
    "lerobot": "pyarrow", "lerobot_png": "pyarrow", "robomimic": "h5py", "aloha": "h5py", "minari": "h5py",
    "umi": "imagecodecs", "ros1": "rosbags", "ros2": "rosbags", "mcap": "rosbags",
}  # fmt: skip
_QUICK = 5  # variants of each sample in the quick run
_PEAK = 600 << 20  # bytes above what the worker itself takes
Change = Callable[[Path], None]


class Marks:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("marker"),))


PICKLE = pickle.dumps(Marks())


@dataclass(frozen=True)
class Variant:
    """One way to damage the file ``name`` of a sample."""

    name: str
    how: str
    change: Change

    def __str__(self) -> str:
        return f"{self.name}: {self.how}"


def replaced(data: Callable[[bytes], bytes]) -> Change:
    return lambda file: cast(None, file.write_bytes(data(file.read_bytes())))


def variants(path: Path, seed: int) -> list[Variant]:
    """About 12 a file, of one file of each kind that the sample has; 24 where it is a single one."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    kinds: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(path.parent).as_posix()
        kinds.setdefault(re.sub(r"\d+", "0", name), file)
    out = []
    for file in kinds.values():
        name, n = file.relative_to(path.parent).as_posix(), file.stat().st_size
        rng = random.Random(f"{seed} {name}")
        for keep in sorted({0, 1, n // 3, n * 9 // 10, n - 1}):
            out.append(Variant(name, f"cut to {keep} bytes", replaced(lambda b, k=keep: b[:k])))  # type: ignore[misc]
        many = 3 if len(kinds) == 1 else 1
        for k in range(4 * many):
            at = rng.randrange(min(n, 512) if k % 2 else n)
            out.append(Variant(name, f"bit flipped at {at}", replaced(_flip(at, rng.randrange(8)))))
        for fill in (0, 255):
            places = [rng.randrange(n) for _ in range(many)]
            out += [Variant(name, f"8 bytes of {fill} at {at}", replaced(_fill(at, fill))) for at in places]
        out.append(Variant(name, "a pickle", replaced(lambda b: PICKLE)))
        out.append(Variant(name, "twice", replaced(lambda b: b + b)))
        out.append(Variant(name, "absent", Path.unlink))
    return out


def _flip(at: int, bit: int) -> Callable[[bytes], bytes]:
    return lambda b: b[:at] + bytes([b[at] ^ 1 << bit]) + b[at + 1 :]


def _fill(at: int, value: int) -> Callable[[bytes], bytes]:
    return lambda b: b[:at] + bytes([value] * len(b[at : at + 8])) + b[at + 8 :]


class Trial:
    """A sample, its values, and a process that imports what is made of it."""

    def __init__(self, name: str, root: Path, ask: Callable[..., dict[str, Any]]) -> None:
        self.name, self.root, self._ask = name, root, ask
        (root / "sample").mkdir(parents=True)
        self.sample = samples.SAMPLES[name](root / "sample")
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
        faults += [f"more than one line: {t}" for t in told if t.count("\n") > 30]
        if answer.get("peak", 0) > self.clean["peak"] + _PEAK:
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


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[..., dict[str, Any]]]:
    """Send one command to the process that imports in a child."""
    script = _HERE / "fuzz_worker.py"
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}  # arenas take address space
    worker = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    stdin, stdout = cast(Any, worker.stdin), cast(Any, worker.stdout)

    def send(**command: Any) -> dict[str, Any]:
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()
        return cast(dict[str, Any], json.loads(stdout.readline()))

    yield send
    stdin.close()
    worker.wait(timeout=30)


@pytest.fixture
def trial(ask: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[[str], Trial]:
    def make(name: str) -> Trial:
        if name in _EXTRAS:
            pytest.importorskip(_EXTRAS[name], reason=f"{_EXTRAS[name]} is not installed")
        return Trial(name, tmp_path / name, ask)

    return make


def judge(trial: Trial, chosen: list[Variant]) -> None:
    answers = [(v, trial.damaged(v.change, v.name)) for v in chosen]
    faults = [f"{v}: {fault}" for v, answer in answers for fault in answer["faults"]]
    if path := os.environ.get("VISUOMOTOR_FUZZ_LOG"):
        with Path(path).open("a") as f:
            for v, answer in answers:
                f.write(json.dumps({"sample": trial.name, "variant": str(v), **answer}) + "\n")
    assert not faults, "\n\n".join(faults)


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_some_damage(trial: Callable[[str], Trial], name: str) -> None:
    made = trial(name)
    chosen = variants(made.sample.path, 0)
    assert len(chosen) >= 20
    judge(made, chosen[:: len(chosen) // _QUICK])


@pytest.mark.slow
@pytest.mark.parametrize("name", samples.SAMPLES)
def test_much_damage(trial: Callable[[str], Trial], name: str) -> None:
    made = trial(name)
    judge(made, variants(made.sample.path, 1))
