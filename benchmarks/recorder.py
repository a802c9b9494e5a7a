"""The recorder at full load: three cameras of 640 x 480 and low-dimensional data at 30 Hz, without dropping a frame.

    python benchmarks/recorder.py [--seconds 60] [--episodes 2] [--video FILE] [--only ours,h5py] [--out FILE]

A producer offers a step every 1/30 s, as cameras do, and does not wait: a step that is due while the one before is
still being recorded is dropped and counted. Each contender runs in a process of its own and starts an episode as soon
as the one before has ended:

- ``nothing``: steps are made and not recorded; what is late or dropped here is the machine's own doing;
- ``ours``: :class:`EpisodeRecorder`, lossless, crash-safe;
- ``h5py``: the frame is written into a chunked HDF5 file by the loop that offers it, lossless, not crash-safe;
- ``lerobot``: as LeRobot 0.4 records: threads write PNG files while the episode lasts, then AV1 video is made of them,
  lossy (libsvtav1, g 2, crf 30), before the next episode can begin. What it wrote so far is lost with the process.

Figures: steps dropped and late (begun 5 ms or more after they were due), the time that recording a step takes its
caller, from the end of an episode to the next one's begin, closing the store, cores used while recording, memory.

Frames come from ``--video``, whose noise and motion are those of a camera, or else are a moving pattern with noise of
two grey levels, which no lossless codec makes much smaller.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import h5py
import numpy as np
from PIL import Image

from visuomotor.data.errors import DataError
from visuomotor.data.recorder import EpisodeRecorder
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

CAMERAS = ("left", "right", "wrist")
HZ, HEIGHT, WIDTH = 30, 480, 640
RING = 30  # different frames of each camera
LATE_S = 5e-3
Step = dict[str, np.ndarray]


class Peer(Protocol):
    """Records steps of episodes into a folder."""

    def step(self, data: Step) -> None: ...
    def end(self) -> None: ...
    def close(self) -> None: ...


def specs() -> dict[str, ArraySpec]:
    image = ArraySpec(shape=(HEIGHT, WIDTH, 3), dtype="uint8", role="observation")
    state, action = ArraySpec(shape=(14,), role="observation"), ArraySpec(shape=(7,), role="action")
    stamp = ArraySpec(shape=(), dtype="float64", role="timestamp")
    return {"state": state, "action": action, "timestamp": stamp, **dict.fromkeys(CAMERAS, image)}


class Nothing:
    def __init__(self, folder: Path) -> None:
        """Takes a folder as the others do."""

    def step(self, data: Step) -> None:
        """Record nothing."""

    def end(self) -> None:
        """Nothing is to be kept."""

    def close(self) -> None:
        """Nothing is open."""


class Ours:
    def __init__(self, folder: Path) -> None:
        self.recorder = EpisodeRecorder(DemoStore.create(folder / "a.zarr", specs(), fps=HZ), max_wait_s=0.0)
        self.step = self.recorder.step
        self.recorder.start()

    def end(self) -> None:
        self.recorder.end()
        self.recorder.start()

    def close(self) -> None:
        self.recorder.discard()
        self.recorder.store.close()


class H5py:
    def __init__(self, folder: Path) -> None:
        self.file, self.n, self.episode = h5py.File(folder / "a.hdf5", "w"), 0, 0
        self._begin()

    def _begin(self) -> None:
        self.n, group = 0, self.file.create_group(f"demo_{self.episode}")
        self.arrays = {
            key: group.create_dataset(
                key, (0, *s.shape), s.dtype, maxshape=(None, *s.shape),
                chunks=(1, *s.shape) if key in CAMERAS else (1024, *s.shape),
            )
            for key, s in specs().items()
        }  # fmt: skip

    def step(self, data: Step) -> None:
        for key, array in self.arrays.items():
            array.resize(self.n + 1, 0)
            array[self.n] = data[key]
        self.n += 1

    def _flush(self) -> None:
        self.file.flush()
        os.fsync(self.file.id.get_vfd_handle())

    def end(self) -> None:
        self._flush()
        self.episode += 1
        self._begin()

    def close(self) -> None:
        self._flush()
        self.file.close()


class LeRobot:
    def __init__(self, folder: Path) -> None:
        self.folder, self.episode, self.n = folder, 0, 0
        self.rows: list[Step] = []
        self.queue: queue.Queue[tuple[np.ndarray, Path]] = queue.Queue()
        for _ in range(4 * len(CAMERAS)):
            threading.Thread(target=self._write, daemon=True).start()

    def _write(self) -> None:
        while True:
            frame, path = self.queue.get()
            Image.fromarray(frame).save(path, compress_level=1)
            self.queue.task_done()

    def _png(self, camera: str, i: int) -> Path:
        return self.folder / f"{camera}-{i:06d}.png"

    def step(self, data: Step) -> None:
        self.rows.append({k: v for k, v in data.items() if k not in CAMERAS})
        for camera in CAMERAS:
            self.queue.put((data[camera].copy(), self._png(camera, self.n)))
        self.n += 1

    def end(self) -> None:
        self.queue.join()
        for camera in CAMERAS:
            video = self.folder / f"{camera}-{self.episode}.mp4"
            pngs = [self._png(camera, i) for i in range(self.n)]
            encode(video, (np.asarray(Image.open(p)) for p in pngs), "libsvtav1", {"g": "2", "crf": "30"})
            for png in pngs:
                png.unlink()
        table = {k: np.stack([row[k] for row in self.rows]) for k in self.rows[0]}
        np.savez(self.folder / f"{self.episode}.npz", **table)  # type: ignore[arg-type]
        self.rows, self.n, self.episode = [], 0, self.episode + 1

    def close(self) -> None:
        """Nothing is open."""


def encode(path: Path, frames: Any, codec: str, options: dict[str, str]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, HZ, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with path.open("rb") as f:
        os.fsync(f.fileno())


PEERS: dict[str, Callable[[Path], Peer]] = {"nothing": Nothing, "ours": Ours, "h5py": H5py, "lerobot": LeRobot}


def ring(video: Path | None) -> dict[str, list[np.ndarray]]:
    """Frames that the cameras show over and over: ``{camera: [RING x [H, W, 3]]}``."""
    if video is not None:
        with av.open(str(video)) as container:
            decoded = [
                f.reformat(WIDTH, HEIGHT, "rgb24").to_ndarray()
                for f, _ in zip(container.decode(video=0), range(RING * len(CAMERAS)), strict=False)
            ]
        return {c: [decoded[(k * RING + i) % len(decoded)] for i in range(RING)] for k, c in enumerate(CAMERAS)}
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    out: dict[str, list[np.ndarray]] = {c: [] for c in CAMERAS}
    for k, camera in enumerate(CAMERAS):
        for i in range(RING):
            scene = np.stack([127 + 100 * np.sin((x + 4 * i) / 50 + y / 80 + k + c) for c in range(3)], -1)
            out[camera].append(np.clip(scene + rng.normal(0, 2, scene.shape), 0, 255).astype(np.uint8))
    return out


@dataclass
class Figures:
    """Of the steps of all episodes [s]."""

    took: list[float]
    late: int = 0
    dropped: int = 0
    refused: int = 0


def play(peer: Peer, frames: dict[str, list[np.ndarray]], n: int, figures: Figures) -> None:
    """Offer the ``n`` steps of one episode, each when it is due."""
    begun, i = time.perf_counter(), 0
    while i < n:
        due = begun + i / HZ
        while (ahead := due - time.perf_counter()) > 0:
            time.sleep(ahead)
        now = time.perf_counter()
        missed = int((now - due) * HZ)  # a camera has overwritten these frames meanwhile
        figures.dropped += min(missed, n - i)
        i += missed
        if i >= n:
            return
        figures.late += now - (begun + i / HZ) >= LATE_S
        low = {"state": np.full(14, i, "f4"), "action": np.full(7, i, "f4"), "timestamp": np.array(now)}
        try:
            peer.step({**low, **{c: f[i % RING] for c, f in frames.items()}})
        except DataError:  # ours says so when the disk does not keep up
            figures.refused += 1
        figures.took.append(time.perf_counter() - now)
        i += 1


def _processor_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def under_load(name: str, args: argparse.Namespace) -> dict[str, Any]:
    frames, folder = ring(args.video), Path(tempfile.mkdtemp(dir=args.folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        peer, figures, ends = PEERS[name](folder), Figures([]), []
        wall, busy = time.perf_counter(), _processor_s()
        for _ in range(args.episodes):
            play(peer, frames, round(args.seconds * HZ), figures)
            begun = time.perf_counter()
            peer.end()
            ends.append(time.perf_counter() - begun)
        wall, begun, recorded = time.perf_counter() - wall, time.perf_counter(), _processor_s()
        peer.close()
        close = time.perf_counter() - begun
        took, raw = np.array(figures.took), len(figures.took) * HEIGHT * WIDTH * 3 * len(CAMERAS)
        out = {
            "steps": len(took), "dropped": figures.dropped, "refused": figures.refused, "late": figures.late,
            "step_ms": {n: 1e3 * np.quantile(took, q) for n, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))},
            "end_of_episode_s": ends, "close_s": close,
            "wall_s": wall, "cores_used": (recorded - busy) / wall, "processor_s_of_close": _processor_s() - recorded,
            "raw_mb_per_s": raw / wall / 1e6,
            "peak_memory_mb_above_start": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1e3,
            "bytes_of_raw": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / raw,
        }  # fmt: skip
        if isinstance(peer, Ours):
            out["load"] = vars(peer.recorder.load)
        return out
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each episode")
    parser.add_argument("--episodes", type=int, default=2)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--only", default=",".join(PEERS))
    parser.add_argument("--folder", type=Path, help="where to write; null: the folder of temporary files")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", choices=sorted(PEERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        print(json.dumps(under_load(args.serve, args)))
        return
    command = [sys.executable, *sys.argv, "--serve"]
    document: dict[str, Any] = {}
    for name in args.only.split(","):
        document[name] = json.loads(subprocess.check_output([*command, name]))
        print(json.dumps({name: document[name]}), file=sys.stderr, flush=True)
    text = json.dumps(document, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
