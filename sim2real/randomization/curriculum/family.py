"""Distributions over the unit coordinates of parameters: a Beta for each range, a categorical for each choice.

A distribution is one vector ``phi``: ``log a`` of every Beta, ``log b`` of every Beta, then the log-odds of every value
to choose against the nominal one. Everything is differentiable in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Family", "Features"]

_CELLS = 2048  # of the table from which Betas are drawn
_LOGIT = 9.0  # largest log-odds
_SLACK = 0.1  # by which log a may lie outside of what it begins between; a = b = 1 has to lie within


@dataclass(frozen=True)
class Features:
    """Points of unit coordinates: logarithms of each range's ``z`` and then ``1 - z``, and which values are chosen."""

    logs: Tensor  # [..., 2 C]
    chosen: list[Tensor]  # int64 [...] of each choice


class Family:
    """All distributions of one kind over ``K`` unit coordinates.

    Args:
        nominal: where they begin, ``[K]``.
        sizes: number of values of each parameter that is a choice, else 0.
        concentration: ``a + b`` of the Betas at the beginning.

    Attributes:
        start: the narrow distribution to begin with, float64 ``[P]``.
        low, high: bounds of phi ``[P]``.
    """

    def __init__(self, nominal: Tensor, sizes: Sequence[int], concentration: float) -> None:
        z, device = nominal.double().clamp(0.0, 1.0), nominal.device
        self._betas = [k for k, n in enumerate(sizes) if not n]
        self._choices = [(k, n) for k, n in enumerate(sizes) if n]
        self._base = [min(int(float(z[k]) * n), n - 1) for k, n in self._choices]  # the nominal values
        c = z[self._betas]
        a, b = (concentration * c).clamp_min(1.0), (concentration * (1.0 - c)).clamp_min(1.0)
        elsewhere = min(0.5, 10.0 / concentration)
        odds = [math.log(elsewhere / (n - 1) / (1.0 - elsewhere)) for _, n in self._choices for _ in range(n - 1)]
        free = torch.tensor(odds, dtype=torch.float64, device=device)
        self.start = torch.cat([a.log(), b.log(), free])
        ends = torch.full_like(a, -_SLACK), torch.full_like(a, math.log(concentration) + _SLACK)
        self.low, self.high = (
            torch.cat([e, e, torch.full_like(free, s * _LOGIT)]) for e, s in zip(ends, (-1.0, 1.0), strict=True)
        )
        self._widest = sum(math.log(n) for _, n in self._choices)

    def features(self, z: Tensor) -> Features:
        """What of ``z [..., K]`` log-densities are made of; worth keeping where many are computed."""
        x = z[..., self._betas].clamp(1e-9, 1.0 - 1e-9)
        chosen = [(z[..., k] * n).long().clamp(0, n - 1) for k, n in self._choices]
        return Features(torch.cat([x.log(), torch.log1p(-x)], -1), chosen)

    def log_prob(self, phi: Tensor, at: Features) -> Tensor:
        """Log-density ``[...]``: of the Betas on the unit interval, of choices the probability."""
        n = len(self._betas)
        a, b = self._shapes(phi)
        out = at.logs @ (phi[: 2 * n].exp() - 1.0) - _log_beta(a, b).sum()
        for chosen, log_p in zip(at.chosen, self._log_p(phi), strict=True):
            out = out + log_p[chosen]
        return out

    def entropy(self, phi: Tensor) -> Tensor:
        """Entropy [nat] less that of the uniform distribution: 0 at most."""
        a, b = self._shapes(phi)
        s = a + b
        h = (
            _log_beta(a, b) - (a - 1) * torch.digamma(a) - (b - 1) * torch.digamma(b) + (s - 2) * torch.digamma(s)
        ).sum()
        for log_p in self._log_p(phi):
            h = h - (log_p.exp() * log_p).sum()
        return h - self._widest

    def divergence(self, phi: Tensor, other: Tensor) -> Tensor:
        """Kullback-Leibler divergence [nat] of ``phi`` from ``other``: the mean of ``log p_phi - log p_other``."""
        (a, b), (c, d) = self._shapes(phi), self._shapes(other)
        psi = torch.digamma
        kl = (
            _log_beta(c, d) - _log_beta(a, b) + (a - c) * psi(a) + (b - d) * psi(b) + (c - a + d - b) * psi(a + b)
        ).sum()
        for log_p, log_q in zip(self._log_p(phi), self._log_p(other), strict=True):
            kl = kl + (log_p.exp() * (log_p - log_q)).sum()
        return kl

    def table(self, phi: Tensor) -> Tensor:
        """Cumulative probabilities ``[K, cells + 1]`` at the edges of equal cells of the unit interval.

        All the probability of a value to choose is in one cell, at the middle of the value's interval.
        """
        device, edges = phi.device, torch.linspace(0.0, 1.0, _CELLS + 1, dtype=torch.float64, device=phi.device)
        middle = (edges[1:] + edges[:-1]) / 2
        a, b = self._shapes(phi)
        log_p = (a - 1.0)[:, None] * middle.log() + (b - 1.0)[:, None] * torch.log1p(-middle)
        mass = torch.empty(len(self._betas) + len(self._choices), _CELLS, dtype=torch.float64, device=device)
        mass[self._betas] = torch.softmax(log_p, 1)
        for (k, n), log_q in zip(self._choices, self._log_p(phi), strict=True):
            mass[k] = 0.0
            at = ((torch.arange(n, device=device) + 0.5) / n * _CELLS).long()
            mass[k, at] = log_q.exp()
        total = mass.cumsum(1)
        return torch.cat([torch.zeros_like(total[:, :1]), total / total[:, -1:]], 1)

    @staticmethod
    def quantile(table: Tensor, u: Tensor) -> Tensor:
        """Unit coordinates ``[K, n]`` below which lies ``u [K, n]`` of a :meth:`table`."""
        at = torch.searchsorted(table, u.contiguous(), right=True).clamp(1, _CELLS) - 1
        low, high = table.gather(1, at), table.gather(1, at + 1)
        return (at + ((u - low) / (high - low).clamp_min(1e-300)).clamp(0.0, 1.0)) / _CELLS

    def _shapes(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        n = len(self._betas)
        return phi[:n].exp(), phi[n : 2 * n].exp()

    def _log_p(self, phi: Tensor) -> list[Tensor]:
        """Log-probabilities ``[n]`` of each choice."""
        out, at = [], 2 * len(self._betas)
        for (_, n), base in zip(self._choices, self._base, strict=True):
            free, at = phi[at : at + n - 1], at + n - 1
            logits = torch.cat([free[:base], free.new_zeros(1), free[base:]])
            out.append(torch.log_softmax(logits, 0))
        return out


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
