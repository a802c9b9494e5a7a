"""A policy of ours as a contender: the trainer on one fixed batch, as ``visuomotor train`` runs it."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import torch
from turns import Contender

__all__ = ["ours"]


def ours(
    shapes: Mapping[str, tuple[int, ...]], *, head: str, backbone: str, batch: int, n_obs: int, horizon: int,
    action_dim: int, precision: str = "auto", head_settings: Mapping[str, Any] | None = None,
    backbone_settings: Mapping[str, Any] | None = None, crop: int | None = None,
) -> Contender:  # fmt: skip
    """Augmentation, normalisation, loss, gradient, clipping, AdamW, EMA; images are uint8, as from the cache."""
    import numpy as np
    from accelerate import Accelerator

    from visuomotor.configs.build import build_policy, keep_freed_memory
    from visuomotor.configs.registry import backbones, heads
    from visuomotor.data.actions import ActionConfig
    from visuomotor.data.batches import Batch
    from visuomotor.data.normalize import KeyNorm, Normalizer, compute_stats
    from visuomotor.data.spec import ArraySpec
    from visuomotor.data.windows import WindowConfig
    from visuomotor.policies.encoders.config import ObservationConfig
    from visuomotor.policies.encoders.images import ImageConfig
    from visuomotor.policies.learn.events import GracefulStop, StepEvent
    from visuomotor.policies.learn.imitation import Trainer, TrainingConfig
    from visuomotor.policies.learn.optim import EMAConfig, OptimConfig
    from visuomotor.policies.spec import PolicySpec

    keep_freed_memory()  # as `visuomotor train` does
    images = {k for k, s in shapes.items() if len(s) == 3}
    obs = {
        k: torch.randint(0, 256, (batch, n_obs, *s), dtype=torch.uint8) if k in images else torch.rand(batch, n_obs, *s)
        for k, s in shapes.items()
    }
    action = torch.rand(batch, horizon, action_dim)
    vectors = {**{f"obs/{k}": v for k, v in obs.items() if k not in images}, "action": action}
    stats = {k: compute_stats([x.flatten(0, 1).numpy().astype(np.float64)]) for k, x in vectors.items()}
    policy = build_policy(
        PolicySpec(
            obs={k: ArraySpec(shape=s, dtype="uint8" if k in images else "float32") for k, s in shapes.items()},
            action_key="action",
            action=ArraySpec(shape=(action_dim,), role="action"),
            fps=10.0,
            window=WindowConfig(n_obs=n_obs, horizon=horizon, n_exec=min(8, horizon - n_obs + 1)),
            action_config=ActionConfig(),
        ),
        obs=ObservationConfig(keys=list(shapes), image=ImageConfig(crop=None if crop is None else [crop, crop])),
        head=heads()[head].config_class(**(head_settings or {})),
        backbone=backbones()[backbone].config_class(**(backbone_settings or {})),
        normalizer=Normalizer(stats, {k: KeyNorm() for k in stats}),
    )
    policy.head.fit(policy.normalize_action(action, obs))
    fixed = Batch(obs, action, torch.zeros(batch, horizon, dtype=torch.bool))
    trainer = Trainer(
        policy, types.SimpleNamespace(batch=lambda step: fixed),  # type: ignore[arg-type]
        config=TrainingConfig(steps=1_000_000, batch_size=batch, precision=precision), optim=OptimConfig(),
        ema=EMAConfig(), accelerator=Accelerator(cpu=True), seed=0,
    )  # fmt: skip
    stop = GracefulStop()

    def once(event: StepEvent) -> None:
        stop.requested = True

    def step() -> None:
        trainer.run([once], stop)  # one step a call

    stop.requested = True
    acting = trainer.ema.module
    one = {k: v[:1] for k, v in obs.items()}
    noise = acting.draw_noise(1, torch.Generator().manual_seed(0))
    return Contender(step, batch, sum(p.numel() for p in policy.parameters()), lambda: acting.sample(one, noise))
