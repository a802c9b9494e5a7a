"""LeRobot 0.4.4's Diffusion and ACT as contenders: its policies with its own presets and its own training step.

Without a GPU, and without gigabytes of CUDA, an interpreter that has them is made so::

    python -m venv peer && peer/bin/pip install torch==2.13.0   # CPU build
    peer/bin/pip install --no-deps lerobot==0.4.4 torchvision diffusers accelerate
    peer/bin/pip install 'numpy<2.4' einops draccus safetensors huggingface_hub datasets pillow imageio requests av
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Mapping
from typing import Any

import torch
from turns import Contender

__all__ = ["lerobot_act", "lerobot_diffusion"]


def lerobot_diffusion(
    shapes: Mapping[str, tuple[int, ...]], *, batch: int, n_obs: int, horizon: int, action_dim: int,
    dims: tuple[int, ...], ddim_steps: int, crop: int | None = None,
) -> Contender:  # fmt: skip
    """Diffusion Policy; ``shapes`` are its observations by LeRobot's names."""
    _import()
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    def make(**sampler: Any) -> Any:
        cropped = {} if crop is None else {"crop_shape": (crop, crop)}
        config = DiffusionConfig(
            n_obs_steps=n_obs, horizon=horizon, down_dims=dims, device="cpu", **_features(shapes, action_dim),
            **cropped, **sampler,
        )  # fmt: skip
        return DiffusionPolicy(config)

    obs = {k: torch.rand(batch, n_obs, *shape) for k, shape in shapes.items()}
    sampler = make(noise_scheduler_type="DDIM", num_inference_steps=ddim_steps).eval()
    one = {k: v[:1] for k, v in obs.items()}
    image = [k for k in shapes if "image" in k]
    if image:  # it stacks the cameras itself when it acts
        one = {k: v for k, v in one.items() if k not in image}
        one["observation.images"] = torch.stack([obs[k][:1] for k in image], dim=-4)
    chunk = torch.no_grad()(lambda: sampler.diffusion.generate_actions(one))
    return _contender(make(), {**obs, **_actions(batch, horizon, action_dim)}, batch, chunk)


def lerobot_act(
    shapes: Mapping[str, tuple[int, ...]], *, batch: int, horizon: int, action_dim: int, width: int
) -> Contender:
    """ACT with its own number of layers (4 encoder, 1 decoder, 4 of the CVAE)."""
    _import()
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    config = ACTConfig(
        n_obs_steps=1, chunk_size=horizon, n_action_steps=horizon, dim_model=width, dim_feedforward=4 * width,
        device="cpu", **_features(shapes, action_dim),
    )  # fmt: skip
    policy, sampler = ACTPolicy(config), ACTPolicy(config).eval()
    obs = {k: torch.rand(batch, *shape) for k, shape in shapes.items()}
    one = {k: v[:1] for k, v in obs.items()}
    chunk = torch.no_grad()(lambda: sampler.model(one))
    return _contender(policy, {**obs, **_actions(batch, horizon, action_dim)}, batch, chunk)


def _contender(policy: Any, batch: Mapping[str, torch.Tensor], size: int, chunk: Any) -> Contender:
    """Its training step (lerobot/scripts/lerobot_train.py: update_policy): the two ``.item()`` are its own."""
    policy.train()
    preset = policy.config.get_optimizer_preset()
    optimizer = preset.build(policy.get_optim_params())
    schedule = policy.config.get_scheduler_preset()
    scheduler = None if schedule is None else schedule.build(optimizer, 1_000_000)

    def step() -> None:
        loss, _ = policy.forward(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), preset.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
        loss.item(), norm.item()

    return Contender(step, size, sum(p.numel() for p in policy.parameters()), chunk)


def _actions(batch: int, horizon: int, action_dim: int) -> dict[str, torch.Tensor]:
    is_pad = torch.zeros(batch, horizon, dtype=torch.bool)
    return {"action": torch.rand(batch, horizon, action_dim) * 2 - 1, "action_is_pad": is_pad}


def _features(shapes: Mapping[str, tuple[int, ...]], action_dim: int) -> dict[str, Any]:
    from lerobot.configs.types import FeatureType, PolicyFeature

    def kind(key: str) -> Any:
        if "image" in key:
            return FeatureType.VISUAL
        return FeatureType.ENV if "environment" in key else FeatureType.STATE

    return {
        "input_features": {k: PolicyFeature(kind(k), shape) for k, shape in shapes.items()},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (action_dim,))},
    }


def _import() -> None:
    """Make LeRobot's policies importable without what they do not use here."""
    root = importlib.util.find_spec("lerobot")
    if root is None or not root.submodule_search_locations:
        raise SystemExit(f"{sys.executable} has no lerobot")
    # torchvision of another build lacks its operators, and `lerobot.policies` imports every policy's dependencies:
    # neither is used here.
    library = torch.library.Library("torchvision", "DEF")
    pools = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
    for op in ("nms", "qnms", "qroi_align", *pools, *(f"_{p}_backward" for p in pools)):
        library.define(f"{op}(Tensor x) -> Tensor")
    globals()["_library"] = library  # operators live as long as their library
    package = types.ModuleType("lerobot.policies")
    package.__path__ = [f"{root.submodule_search_locations[0]}/policies"]
    sys.modules["lerobot.policies"] = package
