"""How well demonstrations agree: with a policy, and with each other.

Gandhi et al. 2022, "Eliciting Compatible Demonstrations for Multi-Human Imitation Learning" (arXiv:2210.08073), call a
demonstration compatible with a policy where its actions are likely under it, or where its states are new to it.
Mandlekar et al. 2021 (arXiv:2108.03298) saw policies fail on mixed operators who act differently in the same states.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visuomotor.data.batches import BatchSource
from visuomotor.data.errors import DataError
from visuomotor.policies.draws import Draws
from visuomotor.policies.policy import Policy

__all__ = ["Disagreement", "EpisodeLoss", "disagreement", "episode_losses"]

_TO_SIGMA = 1.4826  # median absolute deviation to standard deviation, for a normal distribution


@dataclass(frozen=True)
class EpisodeLoss:
    """Training loss of every episode under a policy; ``nan`` for one without a window.

    ``deviation``: robust standard deviations from the median episode; what is far above is unlike what was learnt.
    """

    loss: NDArray[np.float64]  # [E]
    deviation: NDArray[np.float64]  # [E]

    @property
    def ranking(self) -> list[int]:
        """Episodes from the least to the most compatible."""
        known = np.flatnonzero(np.isfinite(self.loss))
        return known[np.argsort(-self.loss[known], kind="stable")].tolist()


@torch.no_grad()
def episode_losses(
    policy: Policy, source: BatchSource, window_episode: NDArray[np.int64], n_episodes: int, *,
    windows_per_episode: int = 64, draws: int = 4, batch_size: int = 256, seed: int = 0,
) -> EpisodeLoss:  # fmt: skip
    """Mean training loss of up to ``windows_per_episode`` evenly spaced windows of every episode.

    Every window is seen with ``draws`` draws of noise and time, which for a diffusion or flow policy makes the loss an
    estimate of a bound on the negative log-likelihood. Steps past the end of an episode do not count. The number of a
    batch names its draws, so the result is a function of the policy, the data and ``seed``.

    Args:
        policy: in evaluation mode.
        source: the windows.
        window_episode: episode of every window, ``[W]`` (``WindowTable.episode``).
        n_episodes: ``E``.
        windows_per_episode: see above.
        draws: see above.
        batch_size: windows at once.
        seed: of the draws.

    Raises:
        DataError: there are no windows.
    """
    chosen = _spread(window_episode, windows_per_episode)
    if not len(chosen):
        raise DataError("no episode is long enough for a window: there is nothing to judge")
    total, count = np.zeros(n_episodes), np.zeros(n_episodes)
    for k in range(draws):
        for start in range(0, len(chosen), batch_size):
            index = chosen[start : start + batch_size]
            batch = source.gather(index).to(policy.device)
            out = policy.loss(batch, Draws(seed, k, start, device=policy.device))
            per_step: Tensor = out.per_step.view(-1, *batch.is_pad.shape).mean(0)  # [B, H], over draws of the loss
            valid = (~batch.is_pad).to(per_step.dtype)
            np.add.at(total, window_episode[index], (per_step * valid).sum(1).double().cpu().numpy())
            np.add.at(count, window_episode[index], valid.sum(1).double().cpu().numpy())
    loss = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    middle = float(np.nanmedian(loss))
    sigma = _TO_SIGMA * float(np.nanmedian(np.abs(loss - middle)))
    return EpisodeLoss(loss, (loss - middle) / max(sigma, 1e-12))


def _spread(episode: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Up to ``most`` evenly spaced windows of every episode; windows are ordered by episode."""
    parts = []
    for e in np.unique(episode):
        mine = np.flatnonzero(episode == e)
        parts.append(mine[np.unique(np.linspace(0, len(mine) - 1, min(most, len(mine))).round().astype(np.int64))])
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


@dataclass(frozen=True)
class Disagreement:
    """How much actions differ in like states, as a share of how much they differ overall.

    0: like states have the same actions; 1: the state says nothing about the action. One observation may be too little
    to know what to do next, so that some disagreement is in the task.
    """

    overall: float
    by_episode: NDArray[np.float64]  # [E]; nan where no state of it was asked about
    within: dict[str, float]  # by group (operator): among episodes of that group
    between: float | None  # among episodes of different groups


def disagreement(
    states: Tensor, actions: Tensor, episode: NDArray[np.int64], groups: NDArray[np.object_] | None = None, *,
    neighbours: int = 8, queries: int = 2000, references: int = 20000, seed: int = 0,
) -> Disagreement:  # fmt: skip
    """Compare the actions of near states of different episodes.

    For each of up to ``queries`` steps its ``neighbours`` nearest states in other episodes are found (Euclidean, every
    component divided by its standard deviation), one at most of each episode; the disagreement is the mean of
    ``|a - a'|^2 / (2 tr Var a)``.

    Args:
        states: ``[T, Ds]``.
        actions: ``[T, Da]``; offsets or targets, as they were recorded.
        episode: episode of every step, ``[T]``.
        groups: who recorded each episode, ``[E]``; None: nobody asks.
        neighbours: see above.
        queries: see above.
        references: steps that neighbours are searched among.
        seed: which steps these are.

    Raises:
        DataError: fewer than two episodes, or actions that never change.
    """
    rng = np.random.default_rng(seed)
    if len(np.unique(episode)) < 2:
        raise DataError("disagreement needs two episodes or more")
    x, a = _scaled(states), actions.double()
    spread = float(2 * a.var(0, correction=0).sum())
    if spread <= 0:
        raise DataError("the actions never change: there is nothing to disagree about")
    query = np.sort(rng.permutation(len(x))[:queries])
    reference = np.sort(rng.permutation(len(x))[:references])
    asked, met, differs = _neighbours(x, a, episode, query, reference, neighbours)
    value = differs / spread
    n = int(episode.max()) + 1
    count = np.bincount(episode[asked], minlength=n)
    by_episode = np.bincount(episode[asked], value, minlength=n) / np.where(count > 0, count, np.nan)
    within: dict[str, float] = {}
    between = None
    if groups is not None:
        mine, theirs = groups[episode[asked]].astype(str), groups[episode[met]].astype(str)
        for name in np.unique(mine):
            if ((mine == name) & (theirs == name)).any():
                within[str(name)] = float(value[(mine == name) & (theirs == name)].mean())
        between = float(value[mine != theirs].mean()) if (mine != theirs).any() else None
    return Disagreement(float(value.mean()), by_episode, within, between)


def _scaled(x: Tensor) -> Tensor:
    x = x.double()
    std = x.std(0, correction=0)
    return ((x - x.mean(0)) / torch.where(std > 0, std, torch.ones_like(std))).float()


def _neighbours(
    x: Tensor, a: Tensor, episode: NDArray[np.int64], query: NDArray[np.int64], reference: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Pairs ``[P]`` of a step and a near one of another episode, and the squared distance of their actions."""
    of = torch.from_numpy(episode)
    order = np.argsort(episode[reference], kind="stable")
    reference = reference[order]
    names, first = np.unique(episode[reference], return_index=True)
    edges = [*first.tolist(), len(reference)]
    found_query, found_other, found_value = [], [], []
    for part in np.array_split(query, max(1, len(query) // 256)):
        distance = torch.cdist(x[part], x[reference])  # [Q, R]
        best = [distance[:, i:j].min(1) for i, j in pairwise(edges)]
        nearest = torch.stack([b.values for b in best], 1)  # [Q, E]
        row = torch.stack([b.indices + i for b, i in zip(best, edges, strict=False)], 1)
        nearest[of[part][:, None] == torch.from_numpy(names)[None]] = torch.inf
        chosen = nearest.topk(min(k, len(names) - 1), largest=False)
        for q, rows, cols, near in zip(part.tolist(), row, chosen.indices, chosen.values, strict=True):
            others = reference[rows[cols[near.isfinite()]].numpy()]
            found_query += [q] * len(others)
            found_other += others.tolist()
            found_value += (a[others] - a[q]).square().sum(1).tolist()
    return np.array(found_query, np.int64), np.array(found_other, np.int64), np.array(found_value)
