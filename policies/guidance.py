"""Guidance of denoising towards what a chunk should agree with: known actions, a point, a sketched path.

All of it is pseudo-inverse guidance (Song et al. 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems").
For data of unit variance, what is unknown of the clean chunk behind ``x = alpha * clean + sigma * noise`` has the
variance ``r^2 = sigma^2 / (alpha^2 + sigma^2)``, so agreeing with ``y`` under weights ``W`` adds
``J^T W (y - clean) / r^2`` to the score, ``J`` the derivative of the clean estimate in ``x``. By Tweedie's formula,
``clean = (x + sigma^2 score) / alpha``, the estimate moves by ``(alpha^2 + sigma^2) / alpha`` times ``J^T W (y -
clean)``. For the straight path of flow matching this is what Black et al. 2025 (arXiv:2506.07339, eq. 2) add to the
velocity, with their bound ``beta`` becoming ``beta * sigma``. Both factors scale with ``x`` as ``1 / J`` does, so the
same formula serves every noise path: variance preserving (diffusion), straight (flow), exploding (EDM, alpha = 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.execution.config import SteerConfig
from visuomotor.policies.execution.planner import ChunkPolicy
from visuomotor.policies.iterative import Estimate, IterativeHead, Level

__all__ = [
    "Agreement",
    "PseudoInverseGuide",
    "Residual",
    "Steering",
    "check_components",
    "check_guidable",
    "guidance_weight",
    "nearest_on_path",
    "soft_mask",
]

Residual = Callable[[Tensor], Tensor]  # clean estimate [B, H, Da] to W (y - clean) [B, H, Da], normalised


def guidance_weight(level: Level, beta: float) -> float:
    """``min(beta * sigma, (alpha^2 + sigma^2) / alpha)``: what multiplies ``J^T W (y - clean)``."""
    bound = beta * level.sigma
    total = level.alpha**2 + level.sigma**2
    return bound if level.alpha * bound <= total else total / level.alpha  # alpha may be 0


def soft_mask(ahead: int, delay: int, n_exec: int) -> Tensor:
    """Weights ``[ahead]`` of the previous chunk's actions from the present on (arXiv:2506.07339, eq. 5).

    1 for the first ``delay`` ones, which will be executed in any case; then falling to 0 at ``ahead - n_exec``, where
    the previous chunk ends.
    """
    left = ahead - n_exec
    i = torch.arange(ahead, dtype=torch.float64)
    c = (left - i) / (left - delay + 1)
    weight = torch.where(i < delay, 1.0, c * torch.expm1(c) / math.expm1(1.0))
    return torch.where(i < left, weight, 0.0).float()


def check_guidable(policy: ChunkPolicy, what: str) -> None:
    """Refuse ``what`` for a head without denoising steps.

    Raises:
        ConfigError: with the reason.
    """
    if not isinstance(policy.head, IterativeHead):
        raise ConfigError(
            f"{what} corrects the clean chunk that is estimated at every denoising step of diffusion, flow matching or "
            f"EDM; {type(policy.head).__name__} has no such steps"
        )


class PseudoInverseGuide:
    """Moves the clean estimate so that it agrees with one or several wishes, through the network's derivative.

    Args:
        residuals: what is left to agree on, each weighted; their sum counts.
        beta: bound of the guidance (see :func:`guidance_weight`).
    """

    needs_gradient = True

    def __init__(self, residuals: Sequence[Residual], *, beta: float) -> None:
        self._residuals, self._beta = list(residuals), beta

    def __call__(self, estimate: Estimate, x: Tensor, level: Level) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            clean = estimate(leaf)
        found = clean.detach()
        residual = self._residuals[0](found)
        for another in self._residuals[1:]:
            residual = residual + another(found)
        (pull,) = torch.autograd.grad(clean, leaf, residual)
        return found + guidance_weight(level, self._beta) * pull


class Agreement:
    """Wish: the chunk agrees with known actions (guided real-time chunking).

    Args:
        actions: ``[B, H, Da]``, normalised.
        weight: ``[B, H]``, 0 to 1.
    """

    def __init__(self, actions: Tensor, weight: Tensor) -> None:
        self._actions, self._weight = actions, weight[..., None]

    def __call__(self, clean: Tensor) -> Tensor:
        return self._weight * (self._actions - clean)


class Steering:
    """Wish: chosen components pass through a point, or along a sketched path (Wang et al. 2024, arXiv:2411.16627).

    Each step from the present on is drawn to the nearest point of the path, which is found in raw units, so that the
    wish means the same in every action mode.

    Args:
        policy: whose chunks are steered.
        config: the path and how strongly it draws.
        obs: the observations of the chunks, ``{key: [B, To, ...]}``.

    Raises:
        ConfigError: components that the action does not have.
    """

    def __init__(self, policy: ChunkPolicy, config: SteerConfig, obs: Mapping[str, Tensor]) -> None:
        check_components(policy, config)
        self._policy, self._obs = policy, obs
        self._dims, self._strength = config.components, config.strength
        self._path = torch.tensor(config.corners, dtype=torch.float32, device=policy.device)  # [P, n]
        self._present = policy.spec.window.n_obs - 1

    def __call__(self, clean: Tensor) -> Tensor:
        found = self._policy.unnormalize_action(clean, self._obs)
        wanted = found.clone()
        ahead = wanted[:, self._present :, self._dims]
        wanted[:, self._present :, self._dims] = nearest_on_path(ahead, self._path)
        # Not from `clean` itself: angles and rotations, which nobody steers, need not come back as they were.
        normalize = partial(self._policy.normalize_action, obs=self._obs)
        residual = self._strength * (normalize(wanted) - normalize(found))
        residual[:, : self._present] = 0.0
        return residual


def check_components(policy: ChunkPolicy, config: SteerConfig) -> None:
    """Refuse components that the action does not have, or that no distance can be measured in.

    Raises:
        ConfigError: naming them.
    """
    size, action = policy.spec.action.size, policy.spec.action_config
    outside = [i for i in config.components if not 0 <= i < size]
    if outside:
        raise ConfigError(f"steer: component {outside[0]} does not exist: the action has components 0..{size - 1}")
    rotations = {*action.angle_dims, *(i for group in action.pose_groups for i in group[3:])}
    turned = [i for i in config.components if i in rotations]
    if turned:
        raise ConfigError(f"steer: component {turned[0]} belongs to a rotation; only positions can be drawn to a point")


def nearest_on_path(points: Tensor, path: Tensor) -> Tensor:
    """For ``points [..., n]`` the nearest point on the path with the corners ``path [P, n]``."""
    if len(path) == 1:
        return path[0].expand_as(points)
    start, along = path[:-1], path[1:] - path[:-1]  # [P - 1, n]
    offset = points[..., None, :] - start
    share = (offset * along).sum(-1) / along.square().sum(-1).clamp_min(1e-12)
    foot = start + share.clamp(0.0, 1.0)[..., None] * along  # [..., P - 1, n]
    best = (points[..., None, :] - foot).square().sum(-1).argmin(-1, keepdim=True)
    return foot.gather(-2, best[..., None].expand(*best.shape, foot.shape[-1]))[..., 0, :]
