"""How the next chunk is made from the previous one: not at all, as a prefix, as guidance, or as a start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.conditioned import Prefix
from visuomotor.policies.execution.config import ExecuteConfig, SteerConfig
from visuomotor.policies.execution.planner import ChunkPolicy, Previous
from visuomotor.policies.guidance import (
    Agreement,
    PseudoInverseGuide,
    Residual,
    Steering,
    check_components,
    check_guidable,
    soft_mask,
)
from visuomotor.policies.iterative import IterativeHead, WarmStart

__all__ = ["ChunkSampler"]


class ChunkSampler:
    """Samples chunks as a mode of execution asks for.

    Args:
        policy: the policy.
        config: the mode and its settings.
        n_exec: control steps from one chunk to the next.
        steer: what the chunks are drawn to, if anything.

    Raises:
        ConfigError: something that the policy's head cannot do, or was not trained for, with the reason.
    """

    def __init__(
        self, policy: ChunkPolicy, config: ExecuteConfig, *, n_exec: int, steer: SteerConfig | None = None
    ) -> None:
        self._policy, self._mode, self._beta = policy, config.mode, config.beta
        self._steer = steer if steer is not None and steer.corners and steer.strength else None
        window = policy.spec.window
        self._known = torch.arange(window.horizon, device=policy.device) < window.n_obs - 1 + config.delay
        self._warm_steps = 0
        if config.mode == "rtc":
            _check_trained(policy, config.delay)
        elif config.mode == "rtc_guided":
            check_guidable(policy, "execute.mode=rtc_guided")
            weight = soft_mask(window.horizon - window.n_obs + 1, config.delay, n_exec)
            self._weight = torch.cat([torch.ones(window.n_obs - 1), weight]).to(policy.device)
        elif config.mode == "warm":
            self._warm_steps = _warm_steps(policy, config.warm_steps)
        if self._steer is not None:
            check_guidable(policy, "steering")
            check_components(policy, self._steer)

    def __call__(self, obs: Mapping[str, Tensor], noise: Tensor, previous: Previous) -> Tensor:
        options = self._guide(obs, previous)
        if self._mode == "rtc":
            options["prefix"] = Prefix(previous.chunk, self._known & previous.exists[:, None])
        if self._mode != "warm" or not bool(previous.exists.any()):
            return self._policy.sample(obs, noise, **options)
        start = WarmStart(self._policy.normalize_action(previous.chunk, obs), self._warm_steps)
        warm = self._policy.sample(obs, noise, start=start, **options)
        if bool(previous.exists.all()):
            return warm
        # Episodes that begin while others go on are rare; all rows twice keeps the blocks whole.
        return torch.where(previous.exists[:, None, None], warm, self._policy.sample(obs, noise, **options))

    def _guide(self, obs: Mapping[str, Tensor], previous: Previous) -> dict[str, Any]:
        wishes: list[Residual] = []
        if self._mode == "rtc_guided" and bool(previous.exists.any()):
            actions = self._policy.normalize_action(previous.chunk, obs)
            wishes.append(Agreement(actions, self._weight * previous.exists[:, None]))
        if self._steer is not None:
            wishes.append(Steering(self._policy, self._steer, obs))
        return {"guide": PseudoInverseGuide(wishes, beta=self._beta)} if wishes else {}


def _check_trained(policy: ChunkPolicy, delay: int) -> None:
    longest = policy.loss_config.max_delay
    if longest < delay:
        learnt = f"for delays up to {longest}" if longest else "without known actions (loss.max_delay=0)"
        raise ConfigError(
            f"execute.mode=rtc with execute.delay={delay}: this policy was trained {learnt}; train with "
            f"loss.max_delay={delay} or more, or use execute.mode=rtc_guided"
        )


def _warm_steps(policy: ChunkPolicy, steps: int | None) -> int:
    """The network evaluations of a warm start.

    Raises:
        ConfigError: a head without denoising steps, or a number that it cannot begin with.
    """
    if not isinstance(policy.head, IterativeHead):
        raise ConfigError(
            f"execute.mode=warm begins in the midst of the denoising steps; {type(policy.head).__name__} makes its "
            "chunk in one go"
        )
    n = len(policy.head.levels)
    if steps is None:
        return (n + 1) // 2
    if steps > n:
        raise ConfigError(f"execute.warm_steps={steps}: the solver has {n} steps, expected 1 to {n}")
    return steps
