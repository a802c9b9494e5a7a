"""Reading demonstrations from an object server, and streaming them: MB/s, windows/s, and how well a buffer shuffles.

    pip install 'moto[server]'; moto_server -p 5900 &      # or any S3 server
    export AWS_ENDPOINT_URL=http://127.0.0.1:5900 AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x AWS_REGION=us-east-1
    python benchmarks/remote.py <store> <s3://bucket/name.zarr> [--upload] [--key img] [--out FILE]

* ``read``: filling the training cache from the URL and from the folder, MB/s of decoded and of stored bytes; beside it
  the plain download of the same objects, which is what server and network give.
* ``stream``: batches by a buffer of a share of the set: windows/s over an epoch (reading included), peak of the memory
  that Python and NumPy took.
* ``shuffle``: of two windows of a batch, how often they are of one episode; and how many episodes a batch holds. A full
  shuffle is the reference; with ``G`` groups an epoch, windows of one episode meet about ``G`` times as often.

Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import obstore
import torch
from obstore.store import S3Store

from visuomotor.data.batches import BatchSource
from visuomotor.data.cache import CacheConfig, TrainingCache, load_cache
from visuomotor.data.store import DemoStore
from visuomotor.data.streaming import EpisodeStream, StreamedRows, StreamingSource
from visuomotor.data.windows import WindowConfig, window_table

WINDOW = WindowConfig()
SHARES = (1.0, 0.5, 0.25, 0.1)
BATCH = 64


def bucket_of(url: str) -> tuple[S3Store, str]:
    parts = urlsplit(url)
    http = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    return S3Store(parts.netloc, client_options={"allow_http": True} if http else {}), parts.path.strip("/")


def upload(folder: Path, url: str) -> None:
    store, prefix = bucket_of(url)
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "journal" not in p.parts):
        obstore.put(store, f"{prefix}/{path.relative_to(folder)}", path.read_bytes())


def download(url: str, key: str) -> tuple[int, float]:
    """Bytes of the objects of one array, and the seconds that plain requests need for them, one after another."""
    store, prefix = bucket_of(url)
    names = [m["path"] for page in obstore.list(store, f"{prefix}/data/{key}/") for m in page]
    begin = time.perf_counter()
    return sum(len(obstore.get(store, n).bytes()) for n in names), time.perf_counter() - begin


def fill(source: str, key: str) -> tuple[int, float]:
    """Decoded bytes, and seconds to open the store and fill an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        with DemoStore.open(source) as store:
            cache = load_cache(store, [key], CacheConfig(mode="mmap", dir=folder))
        return cache.nbytes, time.perf_counter() - begin


def measure_reads(path: Path, url: str, key: str, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"folder": [], "url": [], "plain_download": []}
    stored = decoded = 0
    for _ in range(rounds):
        decoded, s = fill(str(path), key)
        seconds["folder"].append(s)
        seconds["url"].append(fill(url, key)[1])
        stored, s = download(url, key)
        seconds["plain_download"].append(s)
    median = {k: statistics.median(v) for k, v in seconds.items()}
    return {
        "decoded_MB": round(decoded / 1e6, 1),
        "stored_MB": round(stored / 1e6, 1),
        "seconds": {k: [round(x, 2) for x in v] for k, v in seconds.items()},
        "decoded_MB_per_s": {k: round(decoded / median[k] / 1e6, 1) for k in ("folder", "url")},
        "stored_MB_per_s": {k: round(stored / median[k] / 1e6, 1) for k in ("folder", "url", "plain_download")},
    }


def togetherness(source: BatchSource, episode: np.ndarray, steps: int) -> dict[str, float]:
    pairs, distinct = [], []
    for step in range(steps):
        e = episode[source.window_indices(step)]
        count = np.unique(e, return_counts=True)[1]
        pairs.append((count * (count - 1)).sum() / (len(e) * (len(e) - 1)))
        distinct.append(len(count))
    return {
        "same_episode_pairs": round(float(np.mean(pairs)), 4),
        "episodes_per_batch": round(float(np.mean(distinct)), 1),
    }


def measure_streams(source: str, key: str, folder: str, read_steps: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    with DemoStore.open(source) as store:
        small = load_cache(store, ["action"], CacheConfig(dir=folder))
        table = window_table(store.episode_ends, WINDOW)
        settings: dict[str, Any] = {
            "action_key": "action", "n_obs": WINDOW.n_obs, "horizon": WINDOW.horizon, "batch_size": BATCH, "seed": 0,
        }  # fmt: skip
        steps = len(table) // BATCH
        full = BatchSource(small, table, obs_keys=[], **settings)
        out["full_shuffle"] = togetherness(full, table.episode, steps)
        total = store.n_steps * int(np.prod(store.specs[key].shape))
        for share in SHARES:
            stream = EpisodeStream(store, [key], 2.02 * total * share)
            rows = {key: StreamedRows(stream, key)}
            cache = TrainingCache(small.arrays, small.episode_ends, "stream", 0, "", rows)
            s = StreamingSource(stream, cache, table, obs_keys=[key], **settings)
            result: dict[str, Any] = {"groups": len(s.groups(0)), **togetherness(s, table.episode, steps)}
            if share < 1:
                tracemalloc.start()
                begin = time.perf_counter()
                for step in range(min(steps, read_steps)):
                    s.batch(step)
                result["windows_per_s"] = round(min(steps, read_steps) * BATCH / (time.perf_counter() - begin))
                result["buffer_MB"] = round(2.02 * total * share / 1e6, 1)
                result["peak_MB"] = round(tracemalloc.get_traced_memory()[1] / 1e6, 1)
                tracemalloc.stop()
            out[f"a group of {share:.0%}"] = result
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="Reading from an object server, and streaming.")
    parser.add_argument("store", type=Path)
    parser.add_argument("url", help="s3://bucket/name.zarr, the same store")
    parser.add_argument("--upload", action="store_true", help="copy the store there first; the bucket must exist")
    parser.add_argument("--key", default="img")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--read-steps", type=int, default=100, help="batches of each stream that are read")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.upload:
        upload(args.store, args.url)
    result = {"read": measure_reads(args.store, args.url, args.key, args.rounds)}
    with tempfile.TemporaryDirectory() as folder:
        result["stream from the folder"] = measure_streams(str(args.store), args.key, folder, args.read_steps)
        result["stream from the url"] = measure_streams(args.url, args.key, folder, args.read_steps)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
