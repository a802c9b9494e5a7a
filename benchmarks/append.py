"""Raw rate of whole episodes with pictures: from arrays in memory to files flushed to disk, on one core.

    python benchmarks/append.py [--rounds 5] [--video FILE] [--folder DIR] [--out FILE]

Ours, as far as the episodes are safe (journal) and with the compressed arrays; h5py without compression and with gzip;
H.264 by av, which is lossy. In turn; medians of the rounds, and of the ratios to h5py without compression in each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from recorder import CAMERAS, HZ, Step, encode, ring, specs

from visuomotor.data.store import DemoStore


def write_ours(folder: Path, episodes: list[Step]) -> None:
    with DemoStore.create(folder / "a.zarr", {k: specs()[k] for k in episodes[0]}, fps=HZ) as store:
        for episode in episodes:
            store.append_episode(episode)


def write_journal(folder: Path, episodes: list[Step]) -> None:
    """Only as far as the episodes are safe; the arrays are made later."""
    store = DemoStore.create(folder / "a.zarr", {k: specs()[k] for k in episodes[0]}, fps=HZ)
    for episode in episodes:
        store.append_episode(episode)


def write_h5py(folder: Path, episodes: list[Step], **options: Any) -> None:
    with h5py.File(folder / "a.hdf5", "w") as file:
        for i, episode in enumerate(episodes):
            for key, rows in episode.items():
                chunks = (1, *rows.shape[1:]) if key in CAMERAS else None
                file.create_dataset(f"demo_{i}/{key}", data=rows, chunks=chunks, **(options if key in CAMERAS else {}))
            file.flush()
            os.fsync(file.id.get_vfd_handle())


def write_mp4(folder: Path, episodes: list[Step]) -> None:
    for i, episode in enumerate(episodes):
        for camera in set(CAMERAS) & set(episode):
            encode(folder / f"{camera}-{i}.mp4", episode[camera], "libx264", {"crf": "18", "threads": "1"})


WAYS: dict[str, Callable[[Path, list[Step]], None]] = {
    "ours": write_ours,
    "ours, journal only": write_journal,
    "h5py raw": write_h5py,
    "h5py gzip 1": lambda folder, episodes: write_h5py(folder, episodes, compression="gzip", compression_opts=1),
    "mp4 H.264 crf 18": write_mp4,
}


def raw_rate(args: argparse.Namespace) -> dict[str, Any]:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    frames = np.stack(ring(args.video)[CAMERAS[0]])
    episode: Step = {"state": np.zeros((90, 14), "f4"), CAMERAS[0]: np.concatenate([frames] * 3)}
    episodes = [episode] * 4
    size = sum(rows.nbytes for e in episodes for rows in e.values()) / 1e6
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for _ in range(args.rounds):
        for name, way in WAYS.items():
            folder = Path(tempfile.mkdtemp(dir=args.folder))
            wall, busy = time.perf_counter(), time.process_time()
            way(folder, episodes)
            rounds[name].append((time.perf_counter() - wall, time.process_time() - busy))
            shutil.rmtree(folder)
    return {
        name: {
            "mb_per_s": statistics.median(size / wall for wall, _ in done),
            "processor_ms_per_mb": statistics.median(1e3 * busy / size for _, busy in done),
            "times_h5py_raw": statistics.median(b[0] / a[0] for a, b in zip(done, rounds["h5py raw"], strict=True)),
        }
        for name, done in rounds.items()
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--folder", type=Path, help="where to write; null: the folder of temporary files")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    text = json.dumps(raw_rate(args), indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
