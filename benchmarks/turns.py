"""Contenders that measure in turns, each in a process of its own: what slows the machine slows all of them alike."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["Contender", "main"]

MARK = "figure "  # begins the lines that are answers; libraries print, too
CHUNKS = 60  # chunks timed in a turn


@dataclass(frozen=True)
class Contender:
    """``step()`` trains on ``batch`` samples; ``chunk()`` makes one chunk at batch 1 (None: not measured)."""

    step: Callable[[], object]
    batch: int
    weights: int
    chunk: Callable[[], object] | None = None


def main(
    doc: str, script: str, contenders: Mapping[str, Callable[[], Contender]], pairs: Mapping[str, str],
    setting: Mapping[str, Any],
) -> None:  # fmt: skip
    """Command line of a benchmark: rounds of turns, medians, and ratios of each of ``pairs`` {ours: peer}, as JSON.

    Peers (names that begin with ``lerobot``) run under ``--peer-python``; without it they are left out.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--peer-python", help="interpreter that has lerobot 0.4.4; none: only ours")
    parser.add_argument("--only", help="comma-separated parts of names: contenders that have one of them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="training time of each turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", choices=sorted(contenders), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        _serve(contenders[args.serve], args.threads, args.seconds)
        return
    names = [n for n in contenders if args.peer_python or not n.startswith("lerobot")]
    if args.only:
        names = [n for n in names if any(part in n for part in args.only.split(","))]
    rounds, facts = _rounds(names, script, args)
    document = {
        "setting": {**setting, "threads": args.threads, "machine": platform.processor() or platform.machine()},
        "times_faster": {f"{a} / {b}": _ratios(rounds[a], rounds[b]) for a, b in pairs.items() if {a, b} <= {*names}},
        "contenders": {n: {**facts[n], **_medians(rounds[n])} for n in names},
    }
    text = json.dumps(document, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def _rounds(
    names: list[str], script: str, args: argparse.Namespace
) -> tuple[dict[str, list[dict[str, float]]], dict[str, Any]]:
    """Few contenders stay alive and alternate; many would not fit into memory, so those come one by one."""
    rounds: dict[str, list[dict[str, float]]] = {n: [] for n in names}
    facts: dict[str, Any] = {}
    groups = [names] if len(names) <= 8 else [[n] for n in names]
    for group in groups:
        processes = {n: _Process(n, script, args) for n in group}
        facts |= {n: p.facts for n, p in processes.items()}
        for _ in range(args.rounds):
            for name, process in processes.items():
                rounds[name].append(process.turn())
        for process in processes.values():
            process.finish()
        if len(groups) > 1:
            print(f"{group[0]}: {_medians(rounds[group[0]])}", file=sys.stderr, flush=True)
    return rounds, facts


def _medians(figures: list[dict[str, float]]) -> dict[str, float]:
    return {k: statistics.median(f[k] for f in figures) for k in figures[0]}


def _ratios(ours: list[dict[str, float]], peer: list[dict[str, float]]) -> dict[str, float]:
    """Of each round, then the median; by the clock and by processor time."""
    both = list(zip(ours, peer, strict=True))
    out = {
        "training": statistics.median(a["samples_per_s"] / b["samples_per_s"] for a, b in both),
        "training_by_processor_time": statistics.median(
            b["processor_ms_per_sample"] / a["processor_ms_per_sample"] for a, b in both
        ),
    }
    if "chunk_p50_ms" in ours[0]:
        out["chunk"] = statistics.median(b["chunk_p50_ms"] / a["chunk_p50_ms"] for a, b in both)
    return out


def _serve(make: Callable[[], Contender], threads: int, seconds: float) -> None:
    """Measure once for each line on standard input."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    c = make()
    for _ in range(3):
        c.step()  # first calls allocate
    print(MARK + json.dumps({"parameters": c.weights, "torch": torch.__version__}), flush=True)
    for _ in sys.stdin:
        start, busy, done = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            c.step()
            done += c.batch
        figures = {
            "samples_per_s": done / (time.perf_counter() - start),
            "processor_ms_per_sample": 1e3 * (time.process_time() - busy) / done,
        }
        if c.chunk is not None:
            figures |= _latency(c.chunk)
        print(MARK + json.dumps(figures), flush=True)


def _latency(chunk: Callable[[], object]) -> dict[str, float]:
    times = []
    for i in range(CHUNKS + 3):
        start = time.perf_counter()
        chunk()
        if i >= 3:
            times.append(1e3 * (time.perf_counter() - start))
    times.sort()
    return {"chunk_p50_ms": statistics.median(times), "chunk_p99_ms": times[round(0.99 * (CHUNKS - 1))]}


class _Process:
    """A contender in its own interpreter."""

    def __init__(self, name: str, script: str, args: argparse.Namespace) -> None:
        python = args.peer_python if name.startswith("lerobot") else sys.executable
        command = [python, script, "--serve", name, "--threads", str(args.threads), "--seconds", str(args.seconds)]
        environ = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
        self._name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ
        )
        self.facts = self._answer()

    def turn(self) -> dict[str, float]:
        """Let it measure once."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def finish(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                answer: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return answer
        raise SystemExit(f"{self._name} failed: run the same command with --serve {self._name} to see why")
