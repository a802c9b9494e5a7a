"""Heads that turn noise into a chunk in several steps, and what can reach into these steps from outside.

On all their noise paths a noisy chunk is ``x = alpha * clean + sigma * noise``; whatever the network predicts is turned
into an estimate of the clean chunk, and a solver only sees that estimate. Guidance, warm starts and composition
therefore need to know nothing of a head but its :class:`Level`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import Head, NetFn

__all__ = ["Estimate", "Guide", "IterativeHead", "Level", "WarmStart"]

Estimate = Callable[[Tensor], Tensor]  # noisy chunk [B, H, Da] -> clean chunk [B, H, Da], at one noise level


class Level(NamedTuple):
    """One place on the noise path: ``x = alpha * clean + sigma * noise``; ``t`` is its name in the head's own units."""

    t: float
    alpha: float
    sigma: float


class Guide(Protocol):
    """Changes the clean estimate during sampling (real-time chunking, steering, ...), in normalised units."""

    needs_gradient: bool  # whether it differentiates ``estimate``

    def __call__(self, estimate: Estimate, x: Tensor, level: Level) -> Tensor:
        """The clean chunk ``[B, H, Da]`` that the solver goes on with, for the noisy ``x [B, H, Da]``."""


class WarmStart(NamedTuple):
    """Begin near a chunk instead of at pure noise: only the last ``steps`` evaluations are made."""

    chunk: Tensor  # [B, H, Da], normalised
    steps: int


class IterativeHead(Head):
    """A head that samples in several steps along a noise path."""

    is_field = True
    starts_at_sigma = False  # whether pure noise is ``sigma * noise`` (EDM), not ``noise`` (alpha is 0 there)

    @property
    @abstractmethod
    def levels(self) -> Sequence[Level]:
        """Where the solver evaluates the network, noisiest first."""

    @abstractmethod
    def set_solver(self, solver: str | None = None, steps: int | None = None) -> None: ...

    @abstractmethod
    def clean_estimate(self, output: Tensor, x: Tensor, level: Level) -> Tensor:
        """The clean chunk that the network's ``output`` for ``x`` means, bounded as the head's settings say."""

    def estimate(self, net_at_t: Estimate, level: Level, x: Tensor) -> Tensor:
        """The clean chunk behind ``x [B, H, Da]``, of a network bound to the time of ``level`` (``NetFn.at``)."""
        return self.clean_estimate(net_at_t(self._net_input(x, level)), x, level)

    def _net_input(self, x: Tensor, level: Level) -> Tensor:
        """The noisy chunk as the network was trained to see it."""
        return x

    @abstractmethod
    def sample(
        self, net: NetFn, noise: Tensor, *, guide: Guide | None = None, start: WarmStart | None = None
    ) -> Tensor:
        """Integrate from ``noise [B, M, H, Da]`` to a normalised chunk ``[B, H, Da]``. Deterministic.

        Raises:
            ConfigError: a warm start with more steps than the solver has, or fewer than 1.
        """

    def begin(self, noise: Tensor, start: WarmStart | None = None) -> tuple[int, Tensor]:
        """Index of the first evaluation, and the noisy chunk ``[B, H, Da]`` that it sees, from ``noise [B, H, Da]``."""
        n = len(self.levels)
        if start is None:
            return 0, self.levels[0].sigma * noise if self.starts_at_sigma else noise
        if not 1 <= start.steps <= n:
            raise ConfigError(f"a warm start of {start.steps} steps: the solver has {n}, expected 1 to {n}")
        level = self.levels[n - start.steps]
        return n - start.steps, level.alpha * start.chunk + level.sigma * noise
