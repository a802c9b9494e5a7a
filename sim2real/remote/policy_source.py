"""Chunks from a policy in this process, for one robot or for several at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from visuomotor.policies.draws import mix_seed
from visuomotor.policies.execution.config import ExecuteConfig
from visuomotor.policies.execution.planner import ChunkPolicy, Previous
from visuomotor.policies.execution.sampling import ChunkSampler
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.remote.source import PlanRequest

__all__ = ["PolicySource"]


class PolicySource:
    """A :class:`ChunkSource` around a policy.

    The noise of a chunk is that of :class:`Planner`: a function of the episode's seed and of how often it planned.

    Args:
        policy: in ``eval`` mode.
        config: the mode of execution. Of its modes, ``receding`` and ``ensemble`` ask for plain chunks, the others for
            chunks that go on from the previous one.
    """

    def __init__(self, policy: ChunkPolicy, config: ExecuteConfig | None = None) -> None:
        self._policy, self._config = policy, config or ExecuteConfig()
        window = policy.spec.window
        self._n_exec = self._config.n_exec or window.n_exec
        self._ahead = window.horizon - window.n_obs + 1
        self._longest = self._ahead // 2
        if self._config.mode == "rtc":
            self._longest = min(self._longest, policy.loss_config.max_delay)
        self._samplers: dict[int, ChunkSampler] = {}
        self._generator = torch.Generator()
        self._sampler(self._config.delay)  # what the policy cannot do is refused now

    @property
    def spec(self) -> PolicySpec:
        """What is observed and commanded."""
        return self._policy.spec

    def plan(self, request: PlanRequest) -> NDArray[np.float32]:
        """One chunk ``[H, Da]``."""
        return self.plan_many([request])[0]

    def plan_many(self, requests: Sequence[PlanRequest]) -> list[NDArray[np.float32]]:
        """A chunk for each; those with the same delay go through the network together."""
        chunks: dict[int, NDArray[np.float32]] = {}
        delays = [self._known(r.delay) for r in requests]
        for delay in sorted(set(delays)):
            rows = [i for i, d in enumerate(delays) if d == delay]
            made = self._batch([requests[i] for i in rows], self._sampler(delay))
            chunks.update(zip(rows, made, strict=True))
        return [chunks[i] for i in range(len(requests))]

    def warm_up(self) -> None:
        """Plan once from zeros: the first pass through a network takes many times as long as the next ones."""
        window, spec = self.spec.window, self.spec
        steps = {k: 1 if k in spec.constant_keys else window.n_obs for k in spec.obs}
        obs = {k: np.zeros((steps[k], *s.shape), s.dtype) for k, s in spec.obs.items()}
        previous = np.zeros((window.horizon, spec.action.size), np.float32)
        for before in (None, previous):
            self.plan(PlanRequest(obs=obs, previous=before, seed=0, plan=0, delay=self._config.delay))

    def close(self) -> None:
        """Nothing is held open."""

    def _known(self, delay: int) -> int:
        """The delay that is planned for: with more of them certain than the policy can take, it plans for fewer."""
        least = 1 if self._config.mode == "rtc" else 0
        return max(least, min(delay, self._longest))

    def _sampler(self, delay: int) -> ChunkSampler:
        if delay not in self._samplers:
            n_exec = min(max(self._n_exec, delay), self._ahead - delay)
            self._samplers[delay] = ChunkSampler(self._policy, replace(self._config, delay=delay), n_exec=n_exec)
        return self._samplers[delay]

    def _batch(self, requests: Sequence[PlanRequest], sampler: ChunkSampler) -> NDArray[np.float32]:
        device, spec = self._policy.device, self.spec
        obs = {k: torch.from_numpy(np.stack([r.obs[k] for r in requests])).to(device) for k in spec.obs}
        shape = (spec.window.horizon, spec.action.size)
        before = np.stack([np.zeros(shape, np.float32) if r.previous is None else r.previous for r in requests])
        exists = torch.tensor([r.previous is not None for r in requests], device=device)
        chunks = sampler(obs, self._noise(requests).to(device), Previous(torch.from_numpy(before).to(device), exists))
        return chunks.cpu().numpy().astype(np.float32, copy=False)

    def _noise(self, requests: Sequence[PlanRequest]) -> torch.Tensor:
        """``[B, M, H, Da]``."""
        noise = torch.empty(len(requests), *self._policy.noise_shape)
        for row, request in enumerate(requests):
            self._generator.manual_seed(mix_seed(request.seed, request.plan))
            noise[row] = torch.randn(self._policy.noise_shape, generator=self._generator)
        return noise
