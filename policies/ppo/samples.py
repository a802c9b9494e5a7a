"""The decisions of a rollout as the learner takes them: flat, with advantages, and what is not finite marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor.policies.likelihoods.base import Record
from visuomotor.policies.ppo.processes import Processes
from visuomotor.policies.ppo.returns import generalized_advantage
from visuomotor.policies.ppo.rollout import Rollout

__all__ = ["Samples", "explained_variance", "joined", "make_samples", "normalized"]


@dataclass(frozen=True)
class Samples:
    """Decisions in a row, ``S = T * N`` of a whole rollout."""

    obs: dict[str, Tensor]  # {key: [S, To, ...]}
    record: Record
    mask: Tensor  # [S, M, H]
    advantage: Tensor  # [S]
    target: Tensor  # [S]
    value: Tensor  # [S]
    valid: Tensor  # [S] float, 0 where something was not finite
    start: Tensor  # [S, M'] log-ratio that the update begins with; 0 unless the rollout is an earlier one

    def rows(self, index: Tensor) -> Samples:
        """The decisions ``index [n]``."""
        return Samples(
            {k: v[index] for k, v in self.obs.items()}, self.record.rows(index), self.mask[index],
            self.advantage[index], self.target[index], self.value[index], self.valid[index], self.start[index],
        )  # fmt: skip


def joined(parts: Sequence[Samples]) -> Samples:
    """Several rollouts' samples one after another."""
    if len(parts) == 1:
        return parts[0]
    records = [p.record for p in parts]
    aux = {k: torch.cat([r.aux[k] for r in records]) for k in records[0].aux}
    width = max(p.start.shape[1] for p in parts)
    return Samples(
        {k: torch.cat([p.obs[k] for p in parts]) for k in parts[0].obs},
        Record(torch.cat([r.chunk for r in records]), aux),
        torch.cat([p.mask for p in parts]), torch.cat([p.advantage for p in parts]),
        torch.cat([p.target for p in parts]), torch.cat([p.value for p in parts]),
        torch.cat([p.valid for p in parts]), torch.cat([p.start.expand(-1, width) for p in parts]),
    )  # fmt: skip


def make_samples(
    r: Rollout, mask: Callable[[Tensor, Record], Tensor], lam: float, trace: Tensor | None = None
) -> Samples:
    """Samples of ``r`` with plain advantages. ``mask`` is that of the likelihood; ``trace [T, N]``: see
    :func:`~visuomotor.policies.ppo.returns.generalized_advantage`.

    What is not finite counts for nothing, but 0 times NaN is NaN in the gradient of every weight: so it is set to 0
    besides being marked.
    """
    advantage = generalized_advantage(
        r.reward, r.discount, r.value, r.next_value, r.terminated, r.truncated, lam, trace
    )
    valid = (r.valid & torch.isfinite(advantage) & torch.isfinite(r.value)).flatten()
    obs = {k: v.flatten(0, 1) for k, v in r.obs.items()}
    drawn = {"chunk": r.record.chunk.flatten(0, 1), **{k: v.flatten(0, 1) for k, v in r.record.aux.items()}}
    for x in (*obs.values(), *drawn.values()):
        if x.is_floating_point():
            valid = valid & torch.isfinite(x).flatten(1).all(1)
    obs, drawn = ({k: _finite(v) for k, v in d.items()} for d in (obs, drawn))
    value, advantage = _finite(r.value.flatten()), _finite(advantage.flatten())
    record = Record(drawn.pop("chunk"), drawn)
    executed = mask(r.executed.flatten(0, 1), record)
    start = value.new_zeros(len(value), 1)
    return Samples(obs, record, executed, advantage, advantage + value, value, valid.float(), start)


def normalized(advantage: Tensor, valid: Tensor, processes: Processes) -> Tensor:
    """``advantage [n]`` with mean 0 and standard deviation 1 over what is ``valid``, in all processes."""
    count, total, square = processes.sum(_moments(advantage, valid))
    mean = total / count.clamp_min(1.0)
    variance = (square / count.clamp_min(1.0) - mean.square()).clamp_min(0.0)
    return ((advantage - mean) / (variance.sqrt() + 1e-8)).float()


def explained_variance(s: Samples, processes: Processes) -> Tensor:
    """Share of the variance of the returns that the critic explained before it learnt from them; 0-dimensional."""
    moments = torch.stack([_moments(s.target, s.valid), _moments(s.target - s.value, s.valid)])
    count, total, square = processes.sum(moments).unbind(1)
    count = count.clamp_min(1.0)
    variance, unexplained = (square / count - (total / count).square()).clamp_min(0.0)
    return 1.0 - unexplained / variance.clamp_min(1e-8)


def _moments(x: Tensor, valid: Tensor) -> Tensor:
    """Count, sum and sum of squares of what is valid: ``[3]`` float64, so that large means do not cancel."""
    x, weight = x.double(), valid.double()
    return torch.stack([weight.sum(), (x * weight).sum(), (x.square() * weight).sum()])


def _finite(x: Tensor) -> Tensor:
    return x.nan_to_num(0.0, 0.0, 0.0) if x.is_floating_point() else x
