"""Environment steps a second of lift on MuJoCo Warp, beside a bare loop of recorded ``mujoco_warp.step`` calls.

    python benchmarks/gpu_envs.py [--envs 4096 16384] [--steps 200] [--rounds 3] [--device cuda] [--out FILE]
    python benchmarks/gpu_envs.py --device cpu --envs 8 --steps 3        # to try it without a GPU

Prints JSON. ``env``: control, physics, reward, observation, resets of those that ended, all on the device, with actions
drawn on the device. ``bare``: the same model, number of worlds and physics steps a control step, as one recorded graph,
nothing else. Both are timed in turns, the median round counts. ``copies`` are the transfers between host and device
that torch's profiler sees in 20 environment steps; there should be none. ``bytes_per_env`` is what the device has less
of after the environment was made and stepped. Pictures are 84x84 RGB of one camera by the ray tracer of Warp.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visuomotor.envs.sim.cameras import CameraConfig
from visuomotor.envs.sim.engines import EngineConfig, engine_device
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.render_warp import WarpCameras
from visuomotor.envs.sim.warp import WarpSimulator
from visuomotor.envs.sim.warp_setup import load_warp
from visuomotor.envs.tasks.lift import Lift, LiftConfig

PICTURE = 84


def wait(device: torch.device) -> None:
    """Until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(work: Callable[[], None], times: int, device: torch.device) -> float:
    """Calls a second."""
    wait(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return times / (time.perf_counter() - start)


def bare_loop(env: SimVecEnv, substeps: int) -> Callable[[], None]:
    """One control step's physics of the same model and sizes, recorded; the arms hold their start."""
    warp, mujoco_warp = load_warp()
    sim = env.sim
    assert isinstance(sim, WarpSimulator)
    with warp.ScopedDevice(str(sim.device)):
        m = mujoco_warp.put_model(sim.model)
        m.opt.warn_overflow = False
        contacts = sim.warp_data.naconmax // sim.num_envs
        d = mujoco_warp.make_data(sim.model, nworld=sim.num_envs, nconmax=contacts, njmax=sim.warp_data.njmax)
        mujoco_warp.reset_data_keyframe(m, d, 0)
        mujoco_warp.step(m, d)
        with warp.ScopedCapture() as capture:
            for _ in range(substeps):
                mujoco_warp.step(m, d)
    return lambda: warp.capture_launch(capture.graph)


def copies(work: Callable[[], None], device: torch.device) -> dict[str, int]:
    """Transfers between host and device in 20 calls, by the profiler's name."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(20):
            work()
        wait(device)
    names = ("memcpy dtoh", "memcpy htod", "aten::item", "aten::_local_scalar_dense", "aten::nonzero")
    found = {e.key: e.count for e in profile.key_averages()}
    return {k: n for k, n in found.items() if k.lower().startswith(names)}


def measure(n: int, steps: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """All figures for ``n`` worlds."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    config = LiftConfig(engine=EngineConfig(name="warp", device=str(device)))
    env = SimVecEnv(Lift(config), config, n)
    low, high = env.action_low, env.action_high
    env.reset(seeds=range(n))

    def step() -> None:
        action: Tensor = low + torch.rand(n, low.shape[0], device=device) * (high - low)
        env.step(action)

    for _ in range(3):  # kernels compiled, steps recorded
        step()
    wait(device)
    used = free - torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    substeps = round(1.0 / (env.fps * env.sim.timestep))
    bare = bare_loop(env, substeps)
    bare()
    pairs = [(rate(step, steps, device), rate(bare, steps, device)) for _ in range(rounds)]
    ours, peer = (n * statistics.median(p[i] for p in pairs) for i in (0, 1))
    row = {
        "envs": n,
        "substeps": substeps,
        "env_steps_per_s": ours,
        "bare_steps_per_s": peer,
        "share_of_bare": statistics.median(a / b for a, b in pairs),
        "copies": copies(step, device),
        "bytes_per_env": used // n,
        "overflow": env.sim.overflow(),
    }
    assert isinstance(env.sim, WarpSimulator)
    cameras = WarpCameras(env.sim, CameraConfig(names=["front"], height=PICTURE, width=PICTURE))

    def draw() -> None:
        cameras.observe()

    draw()
    row["frames_per_s"] = n * rate(draw, max(1, steps // 10), device)
    env.close()
    return row


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = engine_device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    found = {
        "device": name,
        "torch": torch.__version__,
        "rows": [measure(n, args.steps, args.rounds, device) for n in args.envs],
    }
    text = json.dumps(found, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
