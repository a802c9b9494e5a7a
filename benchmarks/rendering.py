"""Pictures a second of lift's front camera: ours at each quality and OpenGL, and MuJoCo's own renderer beside them.

    python benchmarks/rendering.py [--seconds 3] [--worlds 8] > rendering.json
    python benchmarks/rendering.py --backend warp --worlds 1024        the ray tracer of engine.name=warp, on a GPU

The peer is the plain loop ``mj_forward``, ``Renderer.update_scene``, ``Renderer.render`` with the quality that MuJoCo
has by default (shadow maps of 4096 pixels, 4 samples), and with that of our ``fast``; its frame buffer is the scene's.
Each OpenGL is measured in a process of its own, since PyOpenGL binds itself to the first that it meets.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

SIZES = (84, 224)


def pictures_a_second(draw: Callable[[], int], seconds: float) -> float:
    """Run ``draw``, which returns how many pictures it drew, for a while; the first call is not counted."""
    draw()
    start, n = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        n += draw()
    return n / spent


def measure(backend: str, seconds: float, worlds: int) -> list[dict[str, Any]]:
    """All figures of one OpenGL."""
    import mujoco

    from visuomotor.envs.sim.batch import BatchSimulator
    from visuomotor.envs.sim.cameras import CameraConfig
    from visuomotor.envs.sim.render import GLCameras
    from visuomotor.envs.sim.selection import Selection
    from visuomotor.envs.tasks.lift import Lift, LiftConfig

    model = Lift(LiftConfig()).scene().compile()
    sim = BatchSimulator(model, worlds)
    sim.forward(Selection.all(worlds, sim.device))
    rows = []
    for size in SIZES:
        for quality in ("fast", "full"):
            cameras = GLCameras(sim, CameraConfig(names=["front"], height=size, width=size, quality=quality))

            def ours(cameras: GLCameras = cameras) -> int:
                cameras.observe()
                return worlds

            rows.append({"what": f"ours, {quality}", "size": size, "fps": pictures_a_second(ours, seconds)})
            cameras.close()
        for quality, shadows, samples in (("default", 4096, 4), ("as fast", 0, 0)):
            scene = Lift(LiftConfig()).scene()
            scene.visual.quality.shadowsize, scene.visual.quality.offsamples = shadows, samples
            plain = scene.compile()
            data = mujoco.MjData(plain)
            with mujoco.Renderer(plain, size, size) as renderer:

                def peer(renderer: Any = renderer, m: mujoco.MjModel = plain, d: mujoco.MjData = data) -> int:
                    mujoco.mj_forward(m, d)
                    renderer.update_scene(d, "front")
                    renderer.render()
                    return 1

                fps = pictures_a_second(peer, seconds)
            rows.append({"what": f"mujoco.Renderer, {quality}", "size": size, "fps": fps})
    return [{"opengl": backend, **row, "fps": round(row["fps"], 1)} for row in rows]


def measure_warp(seconds: float, worlds: int) -> list[dict[str, Any]]:
    """Figures of the ray tracer, on the GPU if there is one; pictures stay where they are made."""
    import torch

    from visuomotor.envs.sim.cameras import CameraConfig
    from visuomotor.envs.sim.render_warp import WarpCameras
    from visuomotor.envs.sim.selection import Selection
    from visuomotor.envs.sim.warp import WarpSimulator
    from visuomotor.envs.tasks.lift import Lift, LiftConfig

    sim = WarpSimulator(Lift(LiftConfig()).scene().compile(), worlds)
    sim.forward(Selection.all(worlds, sim.device))
    rows = []
    for size in SIZES:
        for quality in ("fast", "full"):
            cameras = WarpCameras(sim, CameraConfig(names=["front"], height=size, width=size, quality=quality))

            def ours(cameras: WarpCameras = cameras) -> int:
                cameras.observe()
                if sim.device.type == "cuda":
                    torch.cuda.synchronize(sim.device)
                return worlds

            fps = round(pictures_a_second(ours, seconds), 1)
            rows.append({"raytracer": str(sim.device), "what": f"ours, {quality}", "size": size, "fps": fps})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--worlds", type=int, default=8)
    parser.add_argument("--backend", choices=("egl", "osmesa", "warp"), help="this one only, in this process")
    args = parser.parse_args()
    if args.backend:
        warp = args.backend == "warp"
        figures = measure_warp(args.seconds, args.worlds) if warp else measure(args.backend, args.seconds, args.worlds)
        print(json.dumps(figures))
        return
    figures = []
    for backend in ("egl", "osmesa"):
        environ = {k: v for k, v in os.environ.items() if k != "PYOPENGL_PLATFORM"} | {"MUJOCO_GL": backend}
        command = [sys.executable, __file__, "--backend", backend]
        command += ["--seconds", str(args.seconds), "--worlds", str(args.worlds)]
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        last = done.stderr.strip().splitlines()[-1:] or ["no output"]
        figures += json.loads(done.stdout) if done.returncode == 0 else [{"opengl": backend, "failed": last[0]}]
    machine = {"cpu": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))}
    print(json.dumps({"machine": machine, "worlds": args.worlds, "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
