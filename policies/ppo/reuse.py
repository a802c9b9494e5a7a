"""Earlier rollouts that are learnt from again, corrected for what the policy has become since.

Generalized PPO (Queeney, Paschalidis and Cassandras 2021, arXiv:2111.00072). The ratio of an earlier rollout begins
where the policy of before this update puts it, ``r_k = p_k / p_then``, and is clipped about that; the range is divided
by the mean age of what is learnt from, counted from 1, so that an update goes as far as one without. Advantages are
those of V-trace (Espeholt et al. 2018, arXiv:1802.01561): longer estimates count as far as the policy of now would
have gone the same way. Values are those that the critic gave when the rollout was gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from visuomotor.policies.likelihoods.base import Evaluation, Record
from visuomotor.policies.ppo.config import PPOConfig
from visuomotor.policies.ppo.objective import reduce_log_ratio
from visuomotor.policies.ppo.rollout import Rollout
from visuomotor.policies.ppo.samples import Samples, joined, make_samples

__all__ = ["Reuse"]

_PARTS = ("executed", "reward", "discount", "value", "next_value", "terminated", "truncated", "valid")


class Reuse:
    """The last ``config.reuse`` rollouts of this process.

    Args:
        config: how ratios are reduced, and how many rollouts are kept.
        mask: of the likelihood.
        evaluate: what the policy of now says about samples.
    """

    def __init__(
        self, config: PPOConfig, mask: Callable[[Tensor, Record], Tensor], evaluate: Callable[[Samples], Evaluation]
    ) -> None:
        self._config, self._mask, self._evaluate = config, mask, evaluate
        self._kept: list[Rollout] = []  # the newest first

    @property
    def clip_share(self) -> float:
        """What the clip range is multiplied by in the next update: 1 over the mean age, counted from 1."""
        return 1.0 / (1.0 + len(self._kept) / 2.0)

    def samples(self, rollout: Rollout) -> Samples:
        """Samples of ``rollout`` and of those kept, one after another; then ``rollout`` is kept too."""
        fresh = make_samples(rollout, self._mask, self._config.lam)
        found = joined([fresh, *(self._corrected(r) for r in self._kept)])
        if self._config.reuse:
            self._kept = [rollout, *self._kept][: self._config.reuse]
        return found

    def state(self) -> dict[str, Tensor]:
        """The rollouts kept, for going on bit for bit."""
        out: dict[str, Tensor] = {}
        for i, r in enumerate(self._kept):
            parts = {f"obs/{k}": v for k, v in r.obs.items()} | {f"aux/{k}": v for k, v in r.record.aux.items()}
            parts |= {"chunk": r.record.chunk} | {name: getattr(r, name) for name in _PARTS}
            out |= {f"{i}/{k}": v for k, v in parts.items()}
        return out

    def load_state(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Inverse of :meth:`state`."""
        self._kept = []
        while parts := _under(state, f"{len(self._kept)}/", device):
            record = Record(parts["chunk"], _under(parts, "aux/", device))
            self._kept.append(
                Rollout(
                    obs=_under(parts, "obs/", device), record=record, **{name: parts[name] for name in _PARTS},
                    episodes=torch.zeros(4, dtype=torch.float64), steps=0, seconds={},
                )
            )  # fmt: skip

    @torch.no_grad()
    def _corrected(self, r: Rollout) -> Samples:
        """Samples of an earlier rollout; those that the policy of now gives no ratio count for nothing."""
        c, plain = self._config, make_samples(r, self._mask, self._config.lam)
        parts = torch.arange(len(plain.valid), device=plain.valid.device).tensor_split(c.minibatches)
        ratios = [self._log_ratio(plain.rows(index)) for index in parts]
        start = torch.cat(ratios)  # [S, M']
        usable = torch.isfinite(start).all(1)
        start = torch.where(usable[:, None], start, 0.0)
        trace = start.sum(1).exp().clamp(max=1.0).view_as(r.reward)
        s = make_samples(r, self._mask, c.lam, trace)
        # what the policy of then did is not what that of now would: V-trace weighs the first step too
        target = s.value + trace.flatten() * s.advantage
        return replace(s, start=start, target=target, valid=s.valid * usable)

    def _log_ratio(self, s: Samples) -> Tensor:
        c, found = self._config, self._evaluate(s).log_ratio
        return reduce_log_ratio(found, s.mask, s.record.chunk.shape[-1], reduce=c.reduce, level=c.level)


def _under(tensors: Mapping[str, Tensor], prefix: str, device: torch.device) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v.to(device) for k, v in tensors.items() if k.startswith(prefix)}
