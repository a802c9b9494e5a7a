"""Success against the number of demonstrations: the same policy trained on 10, 20, 50, ... of them.

    python benchmarks/data_scaling.py task=pusht data=<zarr> --counts 10 20 50 100 --seeds 0 1 2 --out runs/scaling \\
        policy=flow train.steps=20000 eval.episodes=100

Words with ``=`` are settings of ``visuomotor train`` and hold for all runs. Each run is one ``visuomotor train
data.episodes=<n> seed=<s>`` in a process of its own, with its own final evaluation; runs of one seed see nested sets
(the first 10 are among the first 20). Every number of demonstrations gets the same training steps, so the small sets
are seen more often. A run that has its ``eval/final.json`` is not repeated, and one that was stopped goes on, so the
script can be killed and called again. Writes ``scaling.json`` and ``scaling.md``: success and score as mean and range
over seeds, and the Wilson interval (95 %) of all test episodes of a count together (episodes of one run are not
independent of its training, so with few seeds the truth may lie outside).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_one(words: Sequence[str], folder: Path, count: int, seed: int) -> dict[str, Any]:
    """The final evaluation of one run, made where it is not there yet."""
    final = folder / "eval" / "final.json"
    if not final.exists():
        settings = [*words, f"data.episodes={count}", f"seed={seed}", f"run_dir={folder}"]
        if (folder / "checkpoints" / "last").exists():
            settings = [f"resume={folder}"]
        subprocess.run([sys.executable, "-m", "visuomotor.configs.cli", "train", *settings], check=True)
    if not final.exists():
        raise SystemExit(f"{folder} has no evaluation: give a task, and eval.episodes above 0")
    document: dict[str, Any] = json.loads(final.read_text())
    return document


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a success rate (Wilson 1927)."""
    p, denominator = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / denominator
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / denominator
    return centre - half, centre + half


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rates, scores = [r["success"]["rate"] for r in results], [r["score"]["mean"] for r in results]
    n = sum(r["n_episodes"] for r in results)
    low, high = wilson(sum(r["success"]["count"] for r in results), n)
    return {
        "seeds": len(results),
        "test_episodes": n,
        "success": sum(rates) / len(rates),
        "success_range": [min(rates), max(rates)],
        "success_wilson95": [low, high],
        "score": sum(scores) / len(scores),
    }


def table(rows: dict[int, dict[str, Any]]) -> str:
    lines = [
        "| demonstrations | success | range over seeds | 95 % | score | seeds × episodes |",
        "|---|---|---|---|---|---|",
    ]
    for count, r in sorted(rows.items()):
        low, high = r["success_range"]
        a, b = r["success_wilson95"]
        lines.append(
            f"| {count} | {r['success']:.0%} | {low:.0%} to {high:.0%} | {a:.0%} to {b:.0%} | {r['score']:.3f} "
            f"| {r['seeds']} × {r['test_episodes'] // r['seeds']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Success against the number of demonstrations.")
    parser.add_argument("words", nargs="+", help="settings of visuomotor train: task=... data=... policy=...")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 20, 50, 100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/data_scaling"))
    args = parser.parse_intermixed_args()
    rows: dict[int, dict[str, Any]] = {}
    for count in sorted(args.counts):
        results = [run_one(args.words, args.out / f"{count}_seed{s}", count, s) for s in args.seeds]
        rows[count] = summary(results)
        (args.out / "scaling.json").write_text(json.dumps({"settings": args.words, "counts": rows}, indent=1) + "\n")
        (args.out / "scaling.md").write_text(table(rows))
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()
