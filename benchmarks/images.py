"""Training samples per second of the image diffusion policy: ours against LeRobot's, same networks and batch.

    python benchmarks/images.py [--peer-python PYTHON] [--rounds 5] [--seconds 8] [--threads 2] [--out FILE]

``PYTHON`` is an interpreter that has lerobot 0.4.4 (``lerobot_unet.py`` says how to make one without a GPU); without it
only ours is measured. Every contender is a process of its own that waits for its turn. Besides the rate by the clock,
the processor time of a sample is given: on a machine that does other work at the same time only that can be compared.

Batch 16 of 2 observed 96x96 images, cut to 84x84 at random; ResNet-18 at full width with group norm and 32 keypoints;
U-Net (128, 256, 512); horizon 16. LeRobot gets float images on the device already; ours uint8, as from the cache.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BATCH, N_OBS, HORIZON, DIMS, SIZE, CROP = 16, 2, 16, (128, 256, 512), 96, 84
MARK = "figure "
Step = Callable[[], None]


def ours(precision: str) -> Step:
    """One step of our trainer on one fixed batch: augmentation, loss, gradient, AdamW, EMA."""
    import numpy as np
    from accelerate import Accelerator

    from visuomotor.configs.build import build_policy, keep_freed_memory
    from visuomotor.data.actions import ActionConfig
    from visuomotor.data.batches import Batch
    from visuomotor.data.normalize import KeyNorm, Normalizer, compute_stats
    from visuomotor.data.spec import ArraySpec
    from visuomotor.data.windows import WindowConfig
    from visuomotor.policies.encoders.config import ObservationConfig
    from visuomotor.policies.encoders.images import ImageConfig
    from visuomotor.policies.heads.diffusion import DiffusionConfig
    from visuomotor.policies.learn.events import GracefulStop, StepEvent
    from visuomotor.policies.learn.imitation import Trainer, TrainingConfig
    from visuomotor.policies.learn.optim import EMAConfig, OptimConfig
    from visuomotor.policies.nets.unet1d import UnetConfig
    from visuomotor.policies.spec import PolicySpec

    keep_freed_memory()  # as `visuomotor train` does
    position, action = torch.rand(BATCH, N_OBS, 2), torch.rand(BATCH, HORIZON, 2)
    images = torch.randint(0, 256, (BATCH, N_OBS, SIZE, SIZE, 3), dtype=torch.uint8)
    stats = {
        k: compute_stats([x.flatten(0, 1).numpy().astype(np.float64)])
        for k, x in (("obs/agent_pos", position), ("action", action))
    }
    policy = build_policy(
        PolicySpec(
            obs={"img": ArraySpec(shape=(SIZE, SIZE, 3), dtype="uint8"), "agent_pos": ArraySpec(shape=(2,))},
            action_key="action",
            action=ArraySpec(shape=(2,), role="action"),
            fps=10.0,
            window=WindowConfig(n_obs=N_OBS, horizon=HORIZON),
            action_config=ActionConfig(),
        ),
        obs=ObservationConfig(keys=["img", "agent_pos"], image=ImageConfig(crop=[CROP, CROP])),
        head=DiffusionConfig(prediction="epsilon"),
        backbone=UnetConfig(dims=list(DIMS)),
        normalizer=Normalizer(stats, {k: KeyNorm() for k in stats}),
    )
    batch = Batch({"img": images, "agent_pos": position}, action, torch.zeros(BATCH, HORIZON, dtype=torch.bool))
    trainer = Trainer(
        policy, types.SimpleNamespace(batch=lambda step: batch),  # type: ignore[arg-type]
        config=TrainingConfig(steps=1_000_000, batch_size=BATCH, precision=precision), optim=OptimConfig(),
        ema=EMAConfig(), accelerator=Accelerator(cpu=True), seed=0,
    )  # fmt: skip

    def step() -> None:
        stop = GracefulStop()

        def once(event: StepEvent) -> None:
            stop.requested = True

        stop.requested = True  # one step a call
        trainer.run([once], stop)

    return step


def lerobot() -> Step:
    """LeRobot's policy and training step (lerobot/scripts/lerobot_train.py: update_policy)."""
    root = importlib.util.find_spec("lerobot")
    if root is None or not root.submodule_search_locations:
        raise SystemExit(f"{sys.executable} has no lerobot")
    library = torch.library.Library("torchvision", "DEF")  # as in lerobot_unet.py
    pools = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
    for op in ("nms", "qnms", "qroi_align", *pools, *(f"_{p}_backward" for p in pools)):
        library.define(f"{op}(Tensor x) -> Tensor")
    package = types.ModuleType("lerobot.policies")
    package.__path__ = [f"{root.submodule_search_locations[0]}/policies"]
    sys.modules["lerobot.policies"] = package
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    config = DiffusionConfig(
        n_obs_steps=N_OBS,
        horizon=HORIZON,
        input_features={
            "observation.image": PolicyFeature(FeatureType.VISUAL, (3, SIZE, SIZE)),
            "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        down_dims=DIMS,
        crop_shape=(CROP, CROP),
        device="cpu",
    )
    policy = DiffusionPolicy(config)
    policy.train()
    preset = policy.config.get_optimizer_preset()
    optimizer = preset.build(policy.get_optim_params())
    scheduler = policy.config.get_scheduler_preset().build(optimizer, 1_000_000)
    batch = {
        "observation.image": torch.rand(BATCH, N_OBS, 3, SIZE, SIZE),
        "observation.state": torch.rand(BATCH, N_OBS, 2),
        "action": torch.rand(BATCH, HORIZON, 2) * 2 - 1,
        "action_is_pad": torch.zeros(BATCH, HORIZON, dtype=torch.bool),
    }

    def step() -> None:
        loss, _ = policy.forward(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), preset.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        loss.item(), norm.item()

    return step


CONTENDERS: dict[str, Callable[[], Step]] = {
    "lerobot": lerobot,
    "ours_fp32": lambda: ours("fp32"),
    "ours_bf16": lambda: ours("bf16"),
}


def serve(name: str, threads: int, seconds: float) -> None:
    """Measure once for each line on standard input."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = CONTENDERS[name]()
    for _ in range(2):
        step()  # first calls allocate
    print(MARK + "{}", flush=True)
    for _ in sys.stdin:
        start, busy, done = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            step()
            done += BATCH
        rate, cost = done / (time.perf_counter() - start), (time.process_time() - busy) / done
        print(MARK + json.dumps({"samples_per_s": rate, "processor_ms_per_sample": 1e3 * cost}), flush=True)


def start(name: str, python: str, args: argparse.Namespace) -> subprocess.Popen[str]:
    """A contender in its own interpreter, warmed up."""
    command = [python, __file__, "--serve", name, "--threads", str(args.threads), "--seconds", str(args.seconds)]
    environ = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
    answer(process, name)
    return process


def answer(process: subprocess.Popen[str], name: str) -> dict[str, float]:
    """The next figure that the contender prints."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(MARK):
            figures: dict[str, float] = json.loads(line.removeprefix(MARK))
            return figures
    raise SystemExit(f"{name} failed; its message is above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer-python", help="interpreter that has lerobot 0.4.4; none: only ours")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="training time of each turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", choices=sorted(CONTENDERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.threads, args.seconds)
        return
    names = [n for n in CONTENDERS if n != "lerobot" or args.peer_python]
    processes = {n: start(n, args.peer_python if n == "lerobot" else sys.executable, args) for n in names}
    rounds: dict[str, list[dict[str, float]]] = {n: [] for n in names}
    for _ in range(args.rounds):
        for name, process in processes.items():
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            rounds[name].append(answer(process, name))
    for process in processes.values():
        process.communicate(timeout=30)
    medians = {n: {k: statistics.median(f[k] for f in figures) for k in figures[0]} for n, figures in rounds.items()}
    document: dict[str, Any] = {"threads": args.threads, "batch": BATCH, "dims": DIMS, "medians": medians}
    if "lerobot" in rounds:  # of each round, then the median: what slowed the machine slowed all
        document["times_faster_than_lerobot"] = {
            n: statistics.median(
                a["samples_per_s"] / b["samples_per_s"] for a, b in zip(rounds[n], rounds["lerobot"], strict=True)
            )
            for n in names
            if n != "lerobot"
        }
    text = json.dumps(document | {"rounds": rounds}, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
