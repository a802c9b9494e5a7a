"""Windows per second of training batches: ours against a per-sample Dataset with worker processes, and against Zarr.

    python benchmarks/loader.py <push-t store> [--rounds 5] [--seconds 2] [--threads 1] [--cache DIR] [--out FILE]

Peers, all written here:

* ``per_sample``: the way of Diffusion Policy (Chi et al. 2023). The arrays lie in RAM as stored (images as float32);
  for each sample every key is sliced over the whole horizon, padded, turned by ``torch.from_numpy``; images go to
  ``[16, C, H, W]`` float / 255 although two frames are used; default collate, two worker processes.
* ``per_sample_lean``: the same loop without its two wastes: uint8 images, and only the observed frames.
* ``zarr``: slices read from the Zarr store for every batch.

The methods take turns within each round; the figures are medians over the rounds. Ours gathers with ``--threads``
threads: on a machine that others use as well, two threads wait for each other. Prints JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from visuomotor.data.batches import Batch, BatchSource
from visuomotor.data.cache import CacheConfig, TrainingCache, load_cache
from visuomotor.data.store import DemoStore
from visuomotor.data.windows import WindowConfig, WindowTable, window_table

WINDOW = WindowConfig()
N_WORKERS = 2
IMAGE_BATCH, STATE_BATCH = 64, 256
NextBatch = Callable[[], Any]


class PerSample(Dataset[dict[str, Any]]):
    """One window at a time: ``arrays {key: [T, ...]}`` in RAM, images under ``img``."""

    def __init__(self, arrays: dict[str, NDArray[Any]], table: WindowTable, *, lean: bool) -> None:
        self.arrays, self.lean = arrays, lean
        self.windows = list(zip(*(a.tolist() for a in (table.start, table.ep_start, table.ep_stop)), strict=True))

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = {key: self._slice(key, *self.windows[index]) for key in self.arrays}
        action = sample.pop("action")
        if "img" in sample:
            image = np.moveaxis(sample["img"], -1, 1)
            sample["img"] = np.ascontiguousarray(image) if self.lean else image / np.float32(255)
            sample["state"] = sample["state"][:, :2]
        return {"obs": {k: torch.from_numpy(v) for k, v in sample.items()}, "action": torch.from_numpy(action)}

    def _slice(self, key: str, start: int, ep_start: int, ep_stop: int) -> NDArray[Any]:
        length = WINDOW.n_obs if self.lean and key != "action" else WINDOW.horizon
        first, stop = max(start, ep_start), min(start + length, ep_stop)
        source = self.arrays[key]
        data = source[first:stop]
        if stop - first == length:
            return data
        padded = np.zeros((length, *source.shape[1:]), source.dtype)
        padded[: first - start] = data[0]
        padded[stop - start :] = data[-1]
        padded[first - start : stop - start] = data
        return padded


def endless(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def per_sample(arrays: dict[str, NDArray[Any]], table: WindowTable, batch_size: int, *, lean: bool) -> NextBatch:
    loader = DataLoader(
        PerSample(arrays, table, lean=lean),
        batch_size,
        shuffle=True,
        num_workers=N_WORKERS,
        drop_last=True,
    )
    batches = endless(loader)
    return lambda: next(batches)


def from_zarr(path: Path, keys: list[str], table: WindowTable, batch_size: int) -> NextBatch:
    group = zarr.open_group(path, mode="r")["data"]
    arrays = {k: group[k] for k in keys}
    rng = np.random.default_rng(0)

    def read() -> dict[str, NDArray[Any]]:
        chosen = rng.integers(0, len(table), batch_size)
        out = {}
        for key, array in arrays.items():
            length = WINDOW.horizon if key == "action" else WINDOW.n_obs
            first = np.clip(table.start[chosen], table.ep_start[chosen], table.ep_stop[chosen] - length)
            out[key] = np.stack([array[int(i) : int(i) + length] for i in first])
        return out

    return read


def ours(cache: TrainingCache, table: WindowTable, obs_keys: list[str], batch_size: int) -> NextBatch:
    source = BatchSource(
        cache,
        table,
        obs_keys=obs_keys,
        action_key="action",
        n_obs=WINDOW.n_obs,
        horizon=WINDOW.horizon,
        batch_size=batch_size,
        seed=0,
    )
    step = -1

    def advance() -> Batch:
        nonlocal step
        step += 1
        return source.batch(step)

    return advance


def rate(next_batch: NextBatch, batch_size: int, seconds: float) -> float:
    """Windows per second; what the workers had ready before the clock started is taken out first."""
    for _ in range(2 * N_WORKERS + 1):
        next_batch()
    begin, n = time.perf_counter(), 0
    while n < 3 or time.perf_counter() - begin < seconds:
        next_batch()
        n += 1
    return n * batch_size / (time.perf_counter() - begin)


def copy_bandwidth() -> float:
    """Bytes read and written per second by one large copy."""
    source = torch.zeros(1 << 28, dtype=torch.uint8)
    target = torch.empty_like(source).copy_(source)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - begin)
    return 2 * source.numel() / statistics.median(times)


def batch_bytes(batch: Batch) -> int:
    return sum(t.nbytes for t in (*batch.obs.values(), batch.action, batch.is_pad))


def measure(path: Path, cache_dir: str, rounds: int, seconds: float) -> dict[str, Any]:
    store = DemoStore.open(path)
    keys = ["img", "state", "action"]
    begin = time.perf_counter()
    load_cache(store, keys, CacheConfig(mode="mmap", dir=cache_dir))
    ingest = time.perf_counter() - begin
    caches = {m: load_cache(store, keys, CacheConfig(mode=m, ram_budget_gb=64, dir=cache_dir)) for m in ("ram", "mmap")}
    table = window_table(store.episode_ends, WINDOW)
    stored = {k: store.read(k, 0, store.n_steps) for k in keys}
    low = {k: stored[k] for k in ("state", "action")}
    lean = {**low, "img": caches["ram"].arrays["img"].numpy()}

    # Made anew each round: the workers of one method must not fill their queues while another is measured.
    methods: dict[str, dict[str, Callable[[], NextBatch]]] = {
        "image": {
            "ours_ram": lambda: ours(caches["ram"], table, ["img", "state"], IMAGE_BATCH),
            "ours_mmap": lambda: ours(caches["mmap"], table, ["img", "state"], IMAGE_BATCH),
            "per_sample": lambda: per_sample(stored, table, IMAGE_BATCH, lean=False),
            "per_sample_lean": lambda: per_sample(lean, table, IMAGE_BATCH, lean=True),
            "zarr": lambda: from_zarr(path, keys, table, IMAGE_BATCH),
        },
        "state": {
            "ours_ram": lambda: ours(caches["ram"], table, ["state"], STATE_BATCH),
            "ours_mmap": lambda: ours(caches["mmap"], table, ["state"], STATE_BATCH),
            "per_sample": lambda: per_sample(low, table, STATE_BATCH, lean=False),
            "zarr": lambda: from_zarr(path, ["state", "action"], table, STATE_BATCH),
        },
    }
    sizes = {"image": IMAGE_BATCH, "state": STATE_BATCH}
    seen: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in m} for kind, m in methods.items()}
    bandwidth = []
    for _ in range(rounds):
        bandwidth.append(copy_bandwidth())
        for kind, group in methods.items():
            for name, make in group.items():
                if name == "zarr" and seen[kind][name]:
                    continue  # seconds a batch; one round tells enough
                seen[kind][name].append(rate(make(), sizes[kind], seconds))
                gc.collect()  # ends the worker processes
    memory = statistics.median(bandwidth)
    result: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "torch_threads": torch.get_num_threads(),
        "ingest_s": round(ingest, 2),
        "copy_bandwidth_GB_s": round(memory / 1e9, 2),
    }
    for kind, group in seen.items():
        median = {name: statistics.median(rates) for name, rates in group.items()}
        size = batch_bytes(methods[kind]["ours_ram"]()()) / sizes[kind]
        moved = {n: 2 * size * median[n] for n in ("ours_ram", "ours_mmap")}  # each byte is read once and written once
        result[kind] = {
            "batch_size": sizes[kind],
            "windows_per_s": {n: round(v) for n, v in median.items()},
            "spread": {n: [round(min(v)), round(max(v))] for n, v in group.items()},
            "bytes_per_window": round(size),
            "ours_moved_GB_s": {n: round(v / 1e9, 2) for n, v in moved.items()},
            "ours_share_of_copy_bandwidth": {n: round(v / memory, 3) for n, v in moved.items()},
            "ours_ram_over": {n: round(median["ours_ram"] / v, 1) for n, v in median.items() if n != "ours_ram"},
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Windows per second of training batches.")
    parser.add_argument("store", type=Path, help="Push-T demonstrations (pusht_cchi_v7_replay.zarr)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="measured per method and round")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of our gather")
    parser.add_argument("--cache", help="cache directory; a temporary one by default")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        text = json.dumps(measure(args.store, args.cache or temporary, args.rounds, args.seconds), indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
