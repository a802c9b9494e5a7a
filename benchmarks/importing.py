"""Frames a second of an import against LeRobot's own iteration, and of training batches against its DataLoader.

    python benchmarks/importing.py <LeRobot 2.1 dataset> --peer-python <python> [--episodes 3] [--rounds 3] [--out FILE]

The episodes are laid out as LeRobot 3.0 first, with the same mp4 files, byte for byte: version 0.4 reads nothing older.
All contenders then read that folder, in turns, so that what slows the machine slows all alike; figures are medians.

* ``ours_import``: :func:`import_demos` into a new store on disk: decoding, compression, checksums, flushing.
* ``ours_decode``: the same without writing: episodes as arrays, by as many threads.
* ``lerobot_iterate``: ``for i in range(len(dataset)): dataset[i]``.
* ``ours_batches``: batches of the training cache made from the imported store, uint8 as they go to the device.
* ``lerobot_loader``: its ``DataLoader`` with two workers, shuffled, the same windows (2 observed steps, 16 actions).

The peer's interpreter needs lerobot 0.4 and torchcodec, which its loader prefers (see lerobot_peer.py). Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MARK = "figure "  # begins the lines that are answers; libraries print, too
PEERS = ("lerobot_iterate", "lerobot_loader")
RATIOS = {"ours_import": "lerobot_iterate", "ours_decode": "lerobot_iterate", "ours_batches": "lerobot_loader"}
BATCH, N_OBS, HORIZON, WORKERS = 16, 2, 16, 2
Turn = Callable[[], tuple[int, float]]  # returns (frames or samples, seconds)


def lay_out(source: Path, out: Path, n_episodes: int) -> None:
    """The first episodes with video of a 2.1 dataset as 3.0: tables by our export, video files copied."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from visuomotor.data.exporting.registry import export_demos
    from visuomotor.data.importing.lerobot import LeRobotSource
    from visuomotor.data.importing.run import Selection, import_demos
    from visuomotor.data.store import DemoStore

    opened = LeRobotSource(source, {})
    cameras = {k: s for k, s in opened.specs.items() if s.is_image}
    chosen = tuple(range(min(n_episodes, len(opened.episodes))))
    low = out.with_suffix(".zarr")
    import_demos(opened, low, selection=Selection(drop=(*cameras, "timestamp"), episodes=chosen))
    with DemoStore.open(low) as store:
        export_demos(store, out, "lerobot")
    info = json.loads((out / "meta/info.json").read_text())
    declared = json.loads((source / "meta/info.json").read_text())["features"]
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    path = next((out / "meta/episodes").glob("*/*.parquet"))
    table = pq.read_table(path)
    for spec in cameras.values():
        name = str(spec.source)
        info["features"][name] = declared[name] | {"visuomotor": {"key": "cam", "spec": spec.to_dict()}}
        folder = out / "videos" / name / "chunk-000"
        folder.mkdir(parents=True)
        for i in chosen:
            episode = int(opened.episodes[i].id)
            file = f"videos/chunk-{episode // 1000:03d}/{name}/episode_{episode:06d}.mp4"
            shutil.copy(source / file, folder / f"file-{i:03d}.mp4")
        ends = [n / info["fps"] for n in table["length"].to_pylist()]
        places = {"chunk_index": [0] * len(chosen), "file_index": list(chosen)}
        places |= {"from_timestamp": [0.0] * len(chosen), "to_timestamp": ends}
        for column, values in places.items():
            table = table.append_column(f"videos/{name}/{column}", pa.array(values))
    pq.write_table(table, path)
    (out / "meta/info.json").write_text(json.dumps(info))


def ours(name: str, root: Path, seconds: float) -> Turn:
    """One of our contenders."""
    from visuomotor.data.importing.lerobot import LeRobotSource
    from visuomotor.data.importing.run import import_demos

    scratch = root.parent / name

    def imported() -> tuple[int, float]:
        shutil.rmtree(scratch, ignore_errors=True)
        begin = time.perf_counter()
        report = import_demos(LeRobotSource(root, {}), scratch, workers=WORKERS)
        return report.steps, time.perf_counter() - begin

    def decoded() -> tuple[int, float]:
        begin = time.perf_counter()
        source = LeRobotSource(root, {})
        with ThreadPoolExecutor(WORKERS) as pool:
            n = sum(len(e.arrays["cam"]) for e in pool.map(source.read, range(len(source.episodes))))
        return n, time.perf_counter() - begin

    if name == "ours_batches":
        imported()
        return _batches(scratch, seconds)
    return imported if name == "ours_import" else decoded


def _batches(path: Path, seconds: float) -> Turn:
    from visuomotor.data.batches import BatchSource
    from visuomotor.data.cache import CacheConfig, load_cache
    from visuomotor.data.store import DemoStore
    from visuomotor.data.windows import WindowConfig, window_table

    with DemoStore.open(path) as store:
        cache = load_cache(store, ["cam", "state", "action"], CacheConfig(mode="ram", dir=str(path.parent / "cache")))
        table = window_table(store.episode_ends, WindowConfig(n_obs=N_OBS, horizon=HORIZON))
    batches = BatchSource(
        cache, table, obs_keys=["cam", "state"], action_key="action", n_obs=N_OBS, horizon=HORIZON, batch_size=BATCH,
        seed=0,
    )  # fmt: skip
    steps = iter(range(1 << 60))
    return lambda: _timed((batches.batch(step) for step in steps), seconds)


def lerobot(name: str, root: Path, seconds: float) -> Turn:
    """One of LeRobot's."""
    from lerobot_peer import _import

    _import()
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    if name == "lerobot_iterate":
        dataset = LeRobotDataset("local/bench", root=root)

        def iterate() -> tuple[int, float]:
            begin, n = time.perf_counter(), 0
            while n < len(dataset) and time.perf_counter() - begin < 10 * seconds:
                dataset[n]
                n += 1
            return n, time.perf_counter() - begin

        return iterate
    info = json.loads((root / "meta/info.json").read_text())
    past = [i / info["fps"] for i in range(1 - N_OBS, 1)]
    observed = [k for k in info["features"] if k.startswith("observation.")]
    deltas = {
        **dict.fromkeys(observed, past),
        "action": [i / info["fps"] for i in range(1 - N_OBS, HORIZON + 1 - N_OBS)],
    }
    windows = LeRobotDataset("local/bench", root=root, delta_timestamps=deltas)
    loader = torch.utils.data.DataLoader(windows, BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)

    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    def load() -> tuple[int, float]:
        endless = batches()
        for _ in range(2 * WORKERS):  # start of the workers, and what they prefetched meanwhile
            next(endless)
        return _timed(endless, 2 * seconds)  # the workers end with the iterator

    return load


def _timed(batches: Iterator[Any], seconds: float) -> tuple[int, float]:
    begin, n = time.perf_counter(), 0
    while n < 3 or time.perf_counter() - begin < seconds:
        next(batches)
        n += 1
    return n * BATCH, time.perf_counter() - begin


def serve(name: str, root: Path, seconds: float) -> None:
    """Measure once for each line on standard input."""
    turn = (lerobot if name in PEERS else ours)(name, root, seconds)
    print(MARK + "ready", flush=True)
    for _ in sys.stdin:
        busy = sum(os.times()[:4])  # own and finished children's
        n, took = turn()
        figures = {"rate": n / took, "processor_ms": 1e3 * (sum(os.times()[:4]) - busy) / n}
        print(MARK + json.dumps(figures), flush=True)


def start(name: str, root: Path, args: argparse.Namespace) -> subprocess.Popen[str]:
    """A contender in a process of its own, ready."""
    python = args.peer_python if name in PEERS else sys.executable
    command = [
        python,
        __file__,
        str(args.dataset),
        "--serve",
        name,
        "--root",
        str(root),
        "--seconds",
        str(args.seconds),
    ]
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(root.parent / "hf")}
    errors = None if args.verbose else subprocess.DEVNULL
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environ
    )
    answer(name, process)
    return process


def answer(name: str, process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(MARK):
            return line.removeprefix(MARK)
    raise SystemExit(f"{name} failed: run again with --verbose to see why")


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Rounds of turns."""
    root = scratch / "v3"
    lay_out(args.dataset, root, args.episodes)
    names = [n for n in (*RATIOS, *PEERS) if (args.peer_python or n not in PEERS) and n in (args.only or [n])]
    processes = {n: start(n, root, args) for n in names}
    seen: dict[str, list[dict[str, float]]] = {n: [] for n in names}
    for _ in range(args.rounds):
        for name, process in processes.items():
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            seen[name].append(json.loads(answer(name, process)))
    for process in processes.values():
        process.communicate(timeout=60)
    rates = {n: [t["rate"] for t in turns] for n, turns in seen.items()}
    busy = {n: [t["processor_ms"] for t in turns] for n, turns in seen.items()}
    pairs = {a: b for a, b in RATIOS.items() if a in seen and b in seen}
    return {
        "setting": {
            "dataset": args.dataset.name, "episodes": args.episodes, "batch": BATCH, "n_obs": N_OBS,
            "horizon": HORIZON, "workers": WORKERS, "cores": os.cpu_count(),
            "machine": platform.processor() or platform.machine(),
        },
        "times_faster": {f"{a} / {b}": _ratio(rates[a], rates[b]) for a, b in pairs.items()},
        "times_less_processor_time": {
            f"{a} / {b}": _ratio(busy[b], busy[a]) for a, b in pairs.items() if b != "lerobot_loader"
        },
        "frames_per_s": {n: round(statistics.median(r), 1) for n, r in rates.items()},
        "processor_ms_per_frame": {n: round(statistics.median(b), 2) for n, b in busy.items() if n != "lerobot_loader"},
        "spread": {n: [round(min(r), 1), round(max(r), 1)] for n, r in rates.items()},
    }  # fmt: skip


def _ratio(a: list[float], b: list[float]) -> float:
    """Of each round, then the median."""
    return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description="Import and training batches against LeRobot's own loader.")
    parser.add_argument("dataset", type=Path, help="a LeRobot 2.1 dataset with one camera")
    parser.add_argument("--peer-python", help="interpreter that has lerobot 0.4 and torchcodec; none: only ours")
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=[*RATIOS, *PEERS], help="contenders; all if not given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of the timed turns")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--verbose", action="store_true", help="show what the contenders print")
    parser.add_argument("--serve", choices=[*RATIOS, *PEERS], help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.root, args.seconds)
        return
    with tempfile.TemporaryDirectory() as scratch:
        text = json.dumps(measure(args, Path(scratch)), indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
