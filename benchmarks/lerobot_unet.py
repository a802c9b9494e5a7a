"""Training samples per second and chunk latency of the U-Net diffusion policy: ours against LeRobot's, same dims.

    python benchmarks/lerobot_unet.py --peer-python PYTHON [--rounds 5] [--seconds 6] [--threads 2] [--out FILE]

``PYTHON`` is an interpreter that has lerobot 0.4.4. Without a GPU, and without gigabytes of CUDA, it is made so::

    python -m venv peer && peer/bin/pip install torch==2.13.0   # CPU build
    peer/bin/pip install --no-deps lerobot==0.4.4 torchvision diffusers accelerate
    peer/bin/pip install 'numpy<2.4' einops draccus safetensors huggingface_hub datasets pillow imageio requests av

Every contender is a process of its own that waits for its turn; the turns alternate within each round, so that a
machine that slows down slows all of them. Figures are medians over the rounds. Batch 256, ``n_obs`` 2, ``horizon`` 16,
five observed numbers, two actions, U-Net (64, 128, 256) with kernel 5 and 8 groups; one fixed batch, no loading.

* ``lerobot``: ``DiffusionPolicy`` with its own presets, and its training step: forward, backward, gradient clipping,
  Adam, schedule, and the two ``.item()`` of its metrics. No normalisation (it does that outside the policy), no EMA.
* ``ours_fp32``, ``ours_bf16``: ``Trainer.run`` as ``visuomotor train`` calls it, so with normalisation and EMA.

Latency is one DDIM chunk of 10 steps at batch 1. Prints JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BATCH, N_OBS, HORIZON, OBS_DIM, ACTION_DIM, DIMS, DDIM_STEPS = 256, 2, 16, 5, 2, (64, 128, 256), 10
MARK = "figure "  # begins the lines that are answers; libraries print, too
# Training for about that many seconds -> samples done; one chunk; number of weights.
Contender = tuple[Callable[[float], int], Callable[[], object], int]


def ours(precision: str) -> Contender:
    """Our trainer on one fixed batch."""
    import numpy as np
    from accelerate import Accelerator

    from visuomotor.configs.build import build_policy, keep_freed_memory
    from visuomotor.data.actions import ActionConfig
    from visuomotor.data.batches import Batch
    from visuomotor.data.normalize import KeyNorm, Normalizer, compute_stats
    from visuomotor.data.spec import ArraySpec
    from visuomotor.data.windows import WindowConfig
    from visuomotor.policies.encoders.config import ObservationConfig
    from visuomotor.policies.heads.diffusion import DiffusionConfig
    from visuomotor.policies.learn.events import GracefulStop, StepEvent
    from visuomotor.policies.learn.imitation import Trainer, TrainingConfig
    from visuomotor.policies.learn.optim import EMAConfig, OptimConfig
    from visuomotor.policies.nets.unet1d import UnetConfig
    from visuomotor.policies.spec import PolicySpec

    keep_freed_memory()  # as `visuomotor train` does
    obs, action = torch.rand(BATCH, N_OBS, OBS_DIM), torch.rand(BATCH, HORIZON, ACTION_DIM)
    stats = {
        k: compute_stats([x.flatten(0, 1).numpy().astype(np.float64)])
        for k, x in (("obs/state", obs), ("action", action))
    }
    spec = PolicySpec(
        obs={"state": ArraySpec(shape=(OBS_DIM,), role="observation")},
        action_key="action",
        action=ArraySpec(shape=(ACTION_DIM,), role="action"),
        fps=10.0,
        window=WindowConfig(n_obs=N_OBS, horizon=HORIZON),
        action_config=ActionConfig(),
    )
    policy = build_policy(
        spec,
        obs=ObservationConfig(keys=["state"]),
        head=DiffusionConfig(prediction="epsilon", solver="ddim", sample_steps=DDIM_STEPS),
        backbone=UnetConfig(dims=list(DIMS)),
        normalizer=Normalizer(stats, {k: KeyNorm() for k in stats}),
    )
    batch = Batch({"state": obs}, action, torch.zeros(BATCH, HORIZON, dtype=torch.bool))
    trainer = Trainer(
        policy,
        types.SimpleNamespace(batch=lambda step: batch),  # type: ignore[arg-type]
        config=TrainingConfig(steps=1_000_000, batch_size=BATCH, precision=precision),
        optim=OptimConfig(),
        ema=EMAConfig(),
        accelerator=Accelerator(cpu=True),
        seed=0,
    )

    def train(seconds: float) -> int:
        stop, end, first = GracefulStop(), time.perf_counter() + seconds, trainer.steps_done

        def until(event: StepEvent) -> None:
            stop.requested = time.perf_counter() >= end

        trainer.run([until], stop)
        return (trainer.steps_done - first) * BATCH

    noise = policy.draw_noise(1, torch.Generator().manual_seed(0))
    weights = sum(p.numel() for p in policy.parameters())
    return train, lambda: trainer.ema.module.sample({"state": obs[:1]}, noise), weights


def lerobot() -> Contender:
    """LeRobot's policy and training step (lerobot/scripts/lerobot_train.py: update_policy)."""
    root = importlib.util.find_spec("lerobot")
    if root is None or not root.submodule_search_locations:
        raise SystemExit(f"{sys.executable} has no lerobot")
    # torchvision of another build lacks its operators, and `lerobot.policies` imports every policy's dependencies:
    # neither is used here.
    library = torch.library.Library("torchvision", "DEF")
    pools = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
    for op in ("nms", "qnms", "qroi_align", *pools, *(f"_{p}_backward" for p in pools)):
        library.define(f"{op}(Tensor x) -> Tensor")
    package = types.ModuleType("lerobot.policies")
    package.__path__ = [f"{root.submodule_search_locations[0]}/policies"]
    sys.modules["lerobot.policies"] = package
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    def make(**sampler: Any) -> Any:
        config = DiffusionConfig(
            n_obs_steps=N_OBS,
            horizon=HORIZON,
            input_features={
                "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
                "observation.environment_state": PolicyFeature(FeatureType.ENV, (OBS_DIM - 2,)),
            },
            output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
            down_dims=DIMS,
            device="cpu",
            **sampler,
        )
        return DiffusionPolicy(config)

    policy = make()
    policy.train()
    preset = policy.config.get_optimizer_preset()
    optimizer = preset.build(policy.get_optim_params())
    scheduler = policy.config.get_scheduler_preset().build(optimizer, 1_000_000)
    obs = {
        "observation.state": torch.rand(BATCH, N_OBS, 2),
        "observation.environment_state": torch.rand(BATCH, N_OBS, OBS_DIM - 2),
    }
    is_pad = torch.zeros(BATCH, HORIZON, dtype=torch.bool)
    batch = {**obs, "action": torch.rand(BATCH, HORIZON, ACTION_DIM) * 2 - 1, "action_is_pad": is_pad}

    def train(seconds: float) -> int:
        end, samples = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            loss, _ = policy.forward(batch)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), preset.grad_clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            loss.item(), norm.item()
            samples += BATCH
        return samples

    sampler = make(noise_scheduler_type="DDIM", num_inference_steps=DDIM_STEPS).eval()
    one = {k: v[:1] for k, v in obs.items()}
    weights = sum(p.numel() for p in policy.parameters())
    return train, torch.no_grad()(lambda: sampler.diffusion.generate_actions(one)), weights


CONTENDERS: dict[str, Callable[[], Contender]] = {
    "lerobot": lerobot,
    "ours_fp32": lambda: ours("fp32"),
    "ours_bf16": lambda: ours("bf16"),
}


def serve(name: str, threads: int, seconds: float) -> None:
    """Measure once for each line on standard input."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    train, chunk, weights = CONTENDERS[name]()
    train(1.0)  # first calls allocate
    chunk()
    print(MARK + json.dumps({"weights": weights, "torch": torch.__version__}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        samples = train(seconds)
        rate = samples / (time.perf_counter() - start)
        times = []
        for _ in range(20):
            start = time.perf_counter()
            chunk()
            times.append(time.perf_counter() - start)
        print(MARK + json.dumps({"samples_per_s": rate, "chunk_ms": 1e3 * statistics.median(times)}), flush=True)


class Process:
    """A contender in its own interpreter."""

    def __init__(self, name: str, python: str, threads: int, seconds: float) -> None:
        command = [python, __file__, "--serve", name, "--threads", str(threads), "--seconds", str(seconds)]
        environ = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self._name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
        )
        self.facts = self._answer()
        self.figures: list[dict[str, float]] = []

    def turn(self) -> None:
        """Let it measure once."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.figures.append(self._answer())

    def finish(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)

    def median(self, key: str) -> float:
        """Median of a figure over the rounds."""
        return statistics.median(f[key] for f in self.figures)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                answer: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return answer
        error = self._process.communicate()[1].strip()
        raise SystemExit(f"{self._name} failed:\n{error}")


def report(processes: dict[str, Process], args: argparse.Namespace) -> dict[str, Any]:
    """Medians, ratios to LeRobot, and every round."""
    keys = ("samples_per_s", "chunk_ms")
    rows = {n: {**p.facts, **{k: p.median(k) for k in keys}, "rounds": p.figures} for n, p in processes.items()}
    ratios = {}
    for name in ("ours_fp32", "ours_bf16"):
        pairs = list(zip(processes[name].figures, processes["lerobot"].figures, strict=True))
        ratios[name] = {  # of each round, then the median: what slowed the machine slowed both
            "training": statistics.median(a["samples_per_s"] / b["samples_per_s"] for a, b in pairs),
            "chunk": statistics.median(b["chunk_ms"] / a["chunk_ms"] for a, b in pairs),
        }
    setting = {
        "batch": BATCH,
        "dims": DIMS,
        "threads": args.threads,
        "machine": platform.processor() or platform.machine(),
    }
    return {"setting": setting, "times_faster_than_lerobot": ratios, "contenders": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer-python", help="interpreter that has lerobot 0.4.4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="training time of each turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", choices=sorted(CONTENDERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.threads, args.seconds)
        return
    if not args.peer_python:
        parser.error("--peer-python is needed: an interpreter that has lerobot 0.4.4")
    processes = {
        n: Process(n, args.peer_python if n == "lerobot" else sys.executable, args.threads, args.seconds)
        for n in CONTENDERS
    }
    for _ in range(args.rounds):
        for process in processes.values():
            process.turn()
    for process in processes.values():
        process.finish()
    text = json.dumps(report(processes, args), indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
