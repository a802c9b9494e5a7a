"""Damaged and hostile files of every format: read with right values or refused with one error, and nothing else.

Each variant is imported in a process of its own with little memory and time, in a folder of which nothing but the
store may change. In every sample but those with checksums a flipped bit of a value cannot be noticed by anybody.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from fuzzing import PICKLE, Ask, Change, Trial, make_trial, replaced, worker
from samples import SAMPLES

_QUICK = 5  # variants of each sample in the quick run


@dataclass(frozen=True)
class Variant:
    """One way to damage the file ``name`` of a sample."""

    name: str
    how: str
    change: Change

    def __str__(self) -> str:
        return f"{self.name}: {self.how}"


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
        kept = sorted({0, 1, n // 3, n * 9 // 10, n - 1})
        out += [Variant(name, f"cut to {k} bytes", replaced(lambda b, k=k: b[:k])) for k in kept]
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


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    with worker() as send:
        yield send


@pytest.fixture(scope="module")
def trial(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trial]:
    """Trials by the names of their samples, each made once."""
    return cache(lambda name: make_trial(name, tmp_path_factory.mktemp("trial"), ask))


def judge(trial: Trial, chosen: list[Variant]) -> None:
    answers = [(v, trial.damaged(v.change, v.name)) for v in chosen]
    faults = [f"{v}: {fault}" for v, answer in answers for fault in answer["faults"]]
    if path := os.environ.get("VISUOMOTOR_FUZZ_LOG"):
        with Path(path).open("a") as f:
            for v, answer in answers:
                f.write(json.dumps({"sample": trial.name, "variant": str(v), **answer}) + "\n")
    assert not faults, "\n\n".join(faults)


@pytest.mark.parametrize("name", SAMPLES)
def test_some_damage(trial: Callable[[str], Trial], name: str) -> None:
    made = trial(name)
    chosen = variants(made.sample.path, 0)
    assert len(chosen) >= 20
    judge(made, chosen[:: len(chosen) // _QUICK])


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_much_damage(trial: Callable[[str], Trial], name: str) -> None:
    made = trial(name)
    judge(made, variants(made.sample.path, 1))
