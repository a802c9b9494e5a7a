"""How strange real observations are to a policy: distances in what its own encoder makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from visuomotor.data.errors import DataError
from visuomotor.policies.execution.planner import ChunkPolicy
from visuomotor.policies.policy import Policy

__all__ = ["Watched", "encode", "strangeness"]

_LIMIT = 4000  # observations that are compared; distances of all to all take its square


class Watched:
    """A policy that remembers what it was shown, for up to ``limit`` chunks."""

    def __init__(self, policy: ChunkPolicy, limit: int = 20_000) -> None:
        self._policy, self._limit, self._seen = policy, limit, list[dict[str, Tensor]]()
        self._count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def sample(self, obs: Mapping[str, Tensor], noise: Tensor, **how: Any) -> Tensor:
        """As the policy does."""
        n = len(noise)
        if self._count < self._limit:
            self._seen.append({k: v.detach().cpu() for k, v in obs.items()})
            self._count += n
        return self._policy.sample(obs, noise, **how)

    def seen(self) -> dict[str, Tensor]:
        """``{key: [S, To, ...]}`` of everything that was remembered."""
        if not self._seen:
            raise DataError("the policy was not asked for a single chunk: nothing to compare with")
        return {k: torch.cat([o[k] for o in self._seen]) for k in self._seen[0]}


@torch.no_grad()
def encode(policy: Policy, obs: Mapping[str, Tensor], batch_size: int = 512) -> Tensor:
    """Features ``[S, F]`` float64 of ``{key: [S, To, ...]}``, as the network gets them."""
    n = len(next(iter(obs.values())))
    parts = []
    for rows in torch.arange(n).split(batch_size):
        seen = policy.net({k: v[rows].to(policy.device) for k, v in obs.items()}).seen
        parts.append(seen.features.flatten(1).double().cpu())
    return torch.cat(parts)


def strangeness(known: Tensor, real: Tensor, neighbours: int = 5, seed: int = 0) -> dict[str, float]:
    """How far ``real [R, F]`` lies from ``known [S, F]``, against how far half of the latter lies from its other half.

    ``nearest`` is the mean distance to the ``neighbours``-th nearest neighbour (Sun et al. 2022, arXiv:2204.06507) in
    features that were brought to deviation 1; ``mahalanobis`` the mean distance under a Gaussian (Lee et al. 2018,
    arXiv:1807.03888), its covariance shrunk by a tenth towards its diagonal. Both are 1 for observations like those
    known.

    Raises:
        DataError: too few observations of either.
    """
    if len(known) < 4 * neighbours or not len(real):
        raise DataError(
            f"{len(known)} known and {len(real)} real observations: expected at least {4 * neighbours} and one"
        )
    g = torch.Generator().manual_seed(seed)
    known = known[torch.randperm(len(known), generator=g)[: 2 * _LIMIT]]
    real = real[torch.randperm(len(real), generator=g)[:_LIMIT]]
    base, held = known.chunk(2)
    mean, spread = base.mean(0), base.std(0)
    scale = torch.where(spread > 1e-9, spread, 1.0)
    base, held, real = ((x - mean) / scale for x in (base, held, real))
    covariance = base.T @ base / len(base)
    covariance = 0.9 * covariance + 0.1 * torch.diag(covariance.diagonal()) + 1e-6 * torch.eye(base.shape[1]).double()
    factor = torch.linalg.cholesky(covariance)

    def nearest(x: Tensor) -> Tensor:
        return torch.cat([torch.cdist(part, base).kthvalue(neighbours, 1).values for part in x.split(512)]).mean()

    def mahalanobis(x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(factor, x.T, upper=False).square().sum(0).sqrt().mean()

    return {
        "nearest": float(nearest(real) / nearest(held).clamp_min(1e-12)),
        "mahalanobis": float(mahalanobis(real) / mahalanobis(held).clamp_min(1e-12)),
        "n_real": float(len(real)), "n_known": float(len(known)),
    }  # fmt: skip
