"""The likelihood of a CARP policy: its codes, scale by scale, then what they leave over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import NetFn
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.carp import CarpHead, draw_codes
from visuomotor.policies.heads.gaussian import gaussian_log_prob
from visuomotor.policies.likelihoods.base import Evaluation, Likelihood, LikelihoodConfig, Record, gaussian_entropy
from visuomotor.policies.policy import Policy

__all__ = ["CarpLikelihood", "CarpLikelihoodConfig"]


@dataclass(kw_only=True, slots=True)
class CarpLikelihoodConfig(LikelihoodConfig):
    """How codes and rest are drawn in training.

    Attributes:
        temperature: of the choice of codes; null takes that of the head. All codes take part, whatever its ``top_k``.
        std: standard deviation of the Gaussian around the regressed rest, in units of what the codes leave over on the
            demonstrations. Acting later takes its mean.
    """

    temperature: float | None = None
    std: float = 1.0

    def __post_init__(self) -> None:
        LikelihoodConfig.__post_init__(self)
        if self.std <= 0.0 or (self.temperature is not None and self.temperature <= 0.0):
            raise ConfigError(
                f"likelihood carp: temperature={self.temperature} and std={self.std:g}: expected more than 0"
            )


class CarpLikelihood(Likelihood):
    """``M`` = scales + 1: a categorical distribution for the codes of each scale, a Gaussian for the rest.

    The log-probability of a code is spread evenly over the steps of its segment. The mask's ``exact`` is exact here as
    for a chain: every pass sees the whole chunk, so every code influences every step; the rest of a step is its own.

    Raises:
        ConfigError: the policy's head is no CARP head, or a temperature of 0, which leaves no choice.
    """

    def __init__(self, policy: Policy, config: CarpLikelihoodConfig) -> None:
        head = policy.head
        if not isinstance(head, CarpHead):
            raise ConfigError(f"likelihood carp: the policy's head is a {type(head).__name__}")
        temperature = head.config.temperature if config.temperature is None else config.temperature
        if not temperature:
            raise ConfigError(
                "likelihood carp: with the head's temperature of 0 the likeliest code is always taken and nothing "
                "would be explored: set likelihood.temperature, for example to 0.5"
            )
        super().__init__(policy, config)
        self._head, self._temperature, self._std = head, temperature, config.std
        self.n_terms = head.passes + 1

    @torch.no_grad()
    def rollout(self, obs: Mapping[str, Tensor], draws: Draws) -> Record:
        shape = (len(next(iter(obs.values()))), *self.policy.noise_shape[1:])
        lengths, codes = self._head.quantizer.lengths, list[Tensor]()

        def pick(k: int, logits: Tensor) -> Tensor:
            noise = draws.normal((shape[0], max(lengths)))[:, : lengths[k]]
            code = draw_codes(logits, noise, temperature=self._temperature)
            codes.append(F.pad(code, (0, max(lengths) - lengths[k])))
            return code

        terms, _, mean, std = self._passes(self.policy.net(obs), shape, pick)
        chunk = mean + std * draws.normal(shape)
        log_prob = torch.stack([*terms, gaussian_log_prob(chunk, mean, std).sum(-1)], 1)
        return Record(chunk, {"codes": torch.stack(codes, 1), "log_prob": log_prob})

    def evaluate(self, obs: Mapping[str, Tensor], record: Record) -> Evaluation:
        shape, codes = tuple(record.chunk.shape), record.aux["codes"]
        terms, entropies, mean, std = self._passes(
            self.policy.net(obs), shape, lambda k, logits: codes[:, k, : logits.shape[1]]
        )
        log_prob = torch.stack([*terms, gaussian_log_prob(record.chunk, mean, std).sum(-1)], 1)
        entropy = torch.stack([*entropies, gaussian_entropy(std)], 1)
        return Evaluation(log_prob - record.aux["log_prob"], entropy)

    def _passes(
        self, net: NetFn, shape: tuple[int, ...], pick: Callable[[int, Tensor], Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """Log-probability and entropy of the codes of every scale, ``[B, H]`` each; mean and spread of the chunk.

        ``pick`` says which codes ``[B, L]`` of scale ``k`` to go on with, given their logits ``[B, L, V]``.
        """
        head, terms, entropies = self._head, list[Tensor](), list[Tensor]()
        *coarse, last = net.at(head.times)
        x = torch.zeros(shape, device=net.seen.features.device)
        for k, net_at_k in enumerate(coarse):
            logits = head.logits(net_at_k(x), k)
            code = pick(k, logits)
            log_p = torch.log_softmax(logits / self._temperature, -1)
            terms.append(self._spread(log_p.gather(-1, code[..., None])[..., 0], k))
            entropies.append(self._spread(-(log_p.exp() * log_p).sum(-1), k))
            x = x + head.quantizer.decode(code, k)
        mean = x + head.rest(last(x))
        return terms, entropies, mean, (self._std * head.residual_std).expand_as(mean)

    def _spread(self, value: Tensor, k: int) -> Tensor:
        """``[B, L]`` of the segments of scale ``k`` to ``[B, H]``: every step has its share of its segment's."""
        segment = self._head.quantizer.segment[k]
        return value[:, segment] / torch.bincount(segment)[segment]
