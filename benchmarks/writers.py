"""One store from several processes that make episodes with cameras: times faster than one process, and than by pipe.

    python benchmarks/writers.py [--workers 2] [--episodes 16] [--work-ms 1] [--rounds 5] [--out FILE]

An episode is 100 steps of two cameras of 240 x 320; making a step costs ``--work-ms`` of processor time, as physics and
drawing would. Ways to write, in turn, until the closed store is on disk:

- ``one process``: makes and appends;
- ``by pipe``: processes make episodes and send the arrays to the one that has the store open, which appends;
- ``staged``: processes write episodes to disk (:class:`EpisodeWriter`), the one that has the store open adds them.

Figures: seconds, and the ratios of the seconds of each round; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.writers import EpisodeWriter, add_episode

STEPS, SHAPE = 100, (240, 320, 3)
SPECS = {
    "state": ArraySpec(shape=(14,), role="observation"),
    "left": ArraySpec(shape=SHAPE, dtype="uint8", role="observation"),
    "right": ArraySpec(shape=SHAPE, dtype="uint8", role="observation"),
}


def make(seed: int, work_s: float) -> dict[str, np.ndarray]:
    """One episode: a moving pattern with a little noise in each picture."""
    rng, (height, width, _) = np.random.default_rng(seed), SHAPE
    y, x = np.mgrid[0:height, 0:width]
    scene = (127 + 100 * np.sin(x / 20 + y / 30 + seed)).astype(np.uint8)
    noise = rng.integers(0, 3, SHAPE, np.uint8)
    out = {key: np.zeros((STEPS, *spec.shape), spec.dtype) for key, spec in SPECS.items()}
    for i in range(STEPS):
        until = time.thread_time() + work_s
        for camera in ("left", "right"):
            out[camera][i] = np.roll(scene, i, 1)[..., None] + np.roll(noise, 7 * i, 0)
        while time.thread_time() < until:
            pass
    return out


def work(pipe: Connection, path: Path, staged: bool, work_s: float, seeds: list[int]) -> None:
    """Program of a process."""
    writer = EpisodeWriter(path)
    for seed in seeds:
        pipe.recv()
        arrays = make(seed, work_s)
        pipe.send(writer.write(arrays) if staged else arrays)


@contextmanager
def pool(path: Path, staged: bool, args: argparse.Namespace) -> Iterator[list[Connection]]:
    context, ours, processes = get_context("spawn"), [], []
    for k in range(args.workers):
        here, there = context.Pipe()
        seeds = list(range(k, args.episodes, args.workers))
        processes.append(context.Process(target=work, args=(there, path, staged, args.work_ms / 1e3, seeds)))
        processes[-1].start()
        ours.append(here)
    yield ours
    for process in processes:
        process.join()


def write(way: str, path: Path, args: argparse.Namespace) -> float:
    """Write a whole store; the time [s] without the start of the processes."""
    with DemoStore.create(path, SPECS, fps=30, journal_bytes=256 << 20) as store:
        if way == "one process":
            begun = time.perf_counter()
            for seed in range(args.episodes):
                store.append_episode(make(seed, args.work_ms / 1e3))
        else:
            with pool(path, way == "staged", args) as pipes:
                time.sleep(5.0)  # they have imported everything by now
                begun = time.perf_counter()
                for pipe in pipes:
                    for _ in range(2):  # the next one is asked for while one is made
                        pipe.send(None)
                for seed in range(args.episodes):
                    pipe = pipes[seed % args.workers]
                    add_episode(store, pipe.recv())
                    if seed + 2 * args.workers < args.episodes:
                        pipe.send(None)
    return time.perf_counter() - begun


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--work-ms", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rounds: dict[str, list[float]] = {"one process": [], "by pipe": [], "staged": []}
    for _ in range(args.rounds):
        for way, seconds in rounds.items():
            folder = Path(tempfile.mkdtemp())
            seconds.append(write(way, folder / "a.zarr", args))
            shutil.rmtree(folder)
    staged = rounds["staged"]
    document = {
        "setting": {k: v for k, v in vars(args).items() if k != "out"},
        "seconds": {way: statistics.median(s) for way, s in rounds.items()},
        "times_faster_staged": {
            way: statistics.median(a / b for a, b in zip(rounds[way], staged, strict=True))
            for way in ("one process", "by pipe")
        },
    }
    text = json.dumps(document, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
