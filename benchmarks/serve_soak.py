"""A policy server under load for a long time: does it leak, and does it keep up?

    python benchmarks/serve_soak.py [--minutes 10] [--clients 4] [--hz 30] [--hostile] [--jpeg 85] [--out FILE]

Server and clients run in processes of their own. Each client sends two pictures of 240 x 320 and a state, two observed
steps each (0.9 MB raw), ``hz`` times a second, each with a deadline of 1/hz + 0.1 s. ``--hostile`` adds a client that
connects all the time without the token, with damaged messages, or leaves in the midst of a request.

The policy is a small network whose actions depend on pictures and state, on one thread. Figures: resident memory of the
server every few seconds and its growth [MB/min] by least squares after the first tenth; requests answered and late;
round trips [ms]; what the server counted; hostile connections made and refused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from visuomotor.data.actions import ActionConfig
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.remote.client import ClientConfig, RemoteSource
from visuomotor.sim2real.remote.config import ServerConfig
from visuomotor.sim2real.remote.protocol import write_plan
from visuomotor.sim2real.remote.server import PolicyServer
from visuomotor.sim2real.remote.sockets import connect
from visuomotor.sim2real.remote.source import PlanRequest
from visuomotor.sim2real.remote.wire import encode

TOKEN = "a token that nobody guesses".replace(" ", "-")
CAMERA = ArraySpec(shape=(240, 320, 3), dtype="uint8", role="observation")
SPEC = PolicySpec(
    obs={"state": ArraySpec(shape=(14,), role="observation"), "front": CAMERA, "wrist": CAMERA},
    action_key="action",
    action=ArraySpec(shape=(7,), role="action"),
    fps=30.0,
    window=WindowConfig(n_obs=2, horizon=16, n_exec=8),
    action_config=ActionConfig(),
)


class Network:
    """Two layers on thinned pictures and the state."""

    spec = SPEC

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        inputs = 2 * (14 + 2 * 15 * 20 * 3)
        self._w1 = rng.normal(size=(inputs, 128)).astype(np.float32) / np.sqrt(inputs)
        self._w2 = rng.normal(size=(128, 16 * 7)).astype(np.float32) / np.sqrt(128)

    def plan_many(self, requests: Sequence[PlanRequest]) -> list[np.ndarray]:
        x = np.stack([self._features(r) for r in requests])
        return list((np.tanh(x @ self._w1) @ self._w2).reshape(-1, 16, 7))

    @staticmethod
    def _features(request: PlanRequest) -> np.ndarray:
        pictures = [request.obs[k][:, ::16, ::16].astype(np.float32).ravel() / 255 for k in ("front", "wrist")]
        return np.concatenate([request.obs["state"].ravel(), *pictures])


def request(rng: np.random.Generator, plan: int, deadline_s: float) -> PlanRequest:
    """Smooth pictures with a little noise, as cameras give them."""
    y, x = np.mgrid[:240, :320]
    picture = (128 + 60 * np.sin(x / 40 + plan / 10) + 40 * np.cos(y / 30))[..., None] + np.zeros(3)
    noisy = (picture + rng.normal(0, 2, picture.shape)).astype(np.uint8)
    obs = {"state": rng.normal(size=(2, 14)).astype(np.float32), "front": np.stack([noisy] * 2)}
    return PlanRequest(
        obs={**obs, "wrist": obs["front"][:, ::-1].copy()},
        previous=np.zeros((16, 7), np.float32),
        seed=1,
        plan=plan,
        deadline_s=deadline_s,
    )


def run_server(port: Any, stop: Event, out: Any) -> None:
    async def serve() -> None:
        async with PolicyServer(Network(), ServerConfig(port=0, token=TOKEN)) as server:
            port.value = server.port
            while not stop.is_set():
                await asyncio.sleep(0.1)
            out.put(server.metrics())

    asyncio.run(serve())


def run_client(url: str, hz: float, jpeg: int | None, seed: int, stop: Event, out: Any) -> None:
    rng = np.random.default_rng(seed)
    source = RemoteSource(ClientConfig(url=url, token=TOKEN, name=f"robot{seed}", jpeg=jpeg))
    requests = [request(rng, i, 1.0 / hz + 0.1) for i in range(8)]
    trips: list[float] = []
    due, plan = time.monotonic(), 0
    while not stop.is_set():
        begin = time.monotonic()
        if source.plan(requests[plan % 8]) is not None:
            trips.append(time.monotonic() - begin)
        plan, due = plan + 1, max(due + 1.0 / hz, time.monotonic())  # a late robot asks at once, and not twice
        time.sleep(max(0.0, due - time.monotonic()))
    counts = source.counts
    out.put({
        "asked": counts.asked, "answered": counts.answered, "late": counts.late, "refused": counts.refused,
        "connections": counts.connections, "round_trip_ms": percentiles(trips),
    })  # fmt: skip
    source.close()


def run_hostile(url: str, stop: Event, out: Any) -> None:
    counts = {"connections": 0, "refused": 0, "admitted without the token": 0}

    async def attack() -> None:
        chance = random.Random(0)
        whole = encode(write_plan(SPEC, request(np.random.default_rng(9), 0, 1.0), 0, jpeg_quality=80))
        hello = encode({"kind": "hello", "protocol": 1, "name": "hostile", "spec": None})
        while not stop.is_set():
            kind = chance.choice(("token", "damaged", "cut", "leave", "huge"))
            header = {"Authorization": "Bearer " + (TOKEN[:-1] if kind == "token" else TOKEN)}
            counts["connections"] += 1
            try:
                async with connect(url, additional_headers=header, compression=None, proxy=None) as ws:
                    counts["admitted without the token"] += kind == "token"
                    await ws.send(hello)
                    await ws.recv()
                    at = chance.randrange(len(whole))
                    broken = {"damaged": whole[:at] + b"\xc1" + whole[at + 1 :], "cut": whole[:at]}
                    await ws.send(broken.get(kind, bytes(32 << 20) if kind == "huge" else whole))
                    if kind != "leave":
                        await asyncio.wait_for(ws.recv(), 1.0)
            except Exception:  # that it is refused is the purpose; how, the tests look at
                counts["refused"] += 1
            await asyncio.sleep(0.2)

    asyncio.run(attack())
    out.put(counts)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": round(1e3 * float(np.percentile(seconds, p)), 2) for p in (50, 95, 99)} if seconds else {}


def soak(minutes: float, clients: int, hz: float, *, jpeg: int | None, hostile: bool) -> dict[str, Any]:
    """Run all of it and collect the figures."""
    context = multiprocessing.get_context("spawn")
    stop, port, out, attacks = context.Event(), context.Value("i", 0), context.Queue(), context.Queue()
    served = context.Queue()
    server = context.Process(target=run_server, args=(port, stop, served))
    server.start()
    while port.value == 0:
        assert server.is_alive()
        time.sleep(0.05)
    url = f"ws://127.0.0.1:{port.value}"
    robots = [context.Process(target=run_client, args=(url, hz, jpeg, i, stop, out)) for i in range(clients)]
    robots += [context.Process(target=run_hostile, args=(url, stop, attacks))] if hostile else []
    for process in robots:
        process.start()
    assert server.pid is not None
    memory, begin = [], time.monotonic()
    watched = psutil.Process(server.pid)
    every = min(5.0, 60 * minutes / 20)
    while (now := time.monotonic() - begin) < 60 * minutes:
        memory.append((now, watched.memory_info().rss / 2**20))
        assert server.is_alive()
        time.sleep(every)
    stop.set()
    results = [out.get(timeout=60) for _ in range(clients)]
    found: dict[str, Any] = {"clients": results, "server": served.get(timeout=60)}
    if hostile:
        found["hostile"] = attacks.get(timeout=60)
    for process in (*robots, server):
        process.join(60)
    settled = np.array([m for m in memory if m[0] > 6 * minutes])
    found["memory_mb"] = {
        "first": round(settled[0, 1], 1), "last": round(settled[-1, 1], 1),
        "growth_per_minute": round(60 * float(np.polyfit(settled[:, 0], settled[:, 1], 1)[0]), 3),
    }  # fmt: skip
    found["settings"] = {"minutes": minutes, "clients": clients, "hz": hz, "jpeg": jpeg, "cores": os.cpu_count()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--hz", type=float, default=30.0)
    parser.add_argument("--jpeg", type=int)
    parser.add_argument("--hostile", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = soak(args.minutes, args.clients, args.hz, jpeg=args.jpeg, hostile=args.hostile)
    text = json.dumps(found, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
