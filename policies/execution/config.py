"""How chunks are executed: the settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from visuomotor.data.errors import ConfigError, nearest

__all__ = ["MODES", "ExecuteConfig", "SteerConfig"]

MODES = ("receding", "ensemble", "rtc", "rtc_guided", "warm")


@dataclass(kw_only=True, slots=True)
class ExecuteConfig:
    """How the chunks of a policy become one action a control step.

    Attributes:
        mode: ``receding`` (one chunk after the other), ``ensemble`` (mean of all chunks that cover the present),
            ``rtc`` (real-time chunking of a policy trained for it with loss.max_delay), ``rtc_guided`` (the same by
            guiding any policy with several denoising steps), ``warm`` (denoising starts from the previous chunk).
        n_exec: control steps between two chunks; null takes the policy's own, and in ``ensemble`` every step.
        delay: control steps between an observation and the chunk made from it; the previous chunk goes on until then.
        beta: bound of the guidance, in ``rtc_guided`` and when steering.
        decay: ``m`` of the weights exp(-m i) in ``ensemble``, i = 0 for the oldest chunk.
        warm_steps: denoising steps that are made in ``warm``; null is half of them.
    """

    mode: str = "receding"
    n_exec: int | None = None
    delay: int = 0
    beta: float = 5.0
    decay: float = 0.01
    warm_steps: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"unknown execute.mode {self.mode!r}. {nearest(self.mode, MODES)}")
        if self.n_exec is not None and self.n_exec < 1:
            raise ConfigError(f"execute.n_exec={self.n_exec}: expected at least 1")
        if self.delay < 0:
            raise ConfigError(f"execute.delay={self.delay}: expected 0 or more control steps")
        if self.mode == "rtc" and self.delay == 0:
            raise ConfigError(
                "execute.mode=rtc with execute.delay=0: no action is certain before the chunk is there, so there is "
                "nothing to go on from. Give the delay, or take execute.mode=receding."
            )
        if not self.beta > 0 or not self.decay >= 0:
            raise ConfigError(f"execute: beta={self.beta} and decay={self.decay}: expected more than 0 and at least 0")
        if self.warm_steps is not None and self.warm_steps < 1:
            raise ConfigError(f"execute.warm_steps={self.warm_steps}: expected at least 1")


@dataclass(kw_only=True, slots=True)
class SteerConfig:
    """A point or a sketched path that the actions are drawn to, in raw action units.

    Attributes:
        target: the point, one value for each of ``dims``; empty: none.
        path: corners of a path, each one value for each of ``dims``; empty: none.
        dims: action components that the values belong to; empty: the first ones.
        strength: 0 has no effect, 1 takes the target for as certain as real-time chunking takes known actions.
    """

    target: list[float] = field(default_factory=list)
    path: list[list[float]] = field(default_factory=list)
    dims: list[int] = field(default_factory=list)
    strength: float = 0.1

    def __post_init__(self) -> None:
        if self.target and self.path:
            raise ConfigError("steer: give target= (a point) or path= (corners of a path), not both")
        sizes = sorted({len(p) for p in self.corners})
        if len(sizes) > 1 or 0 in sizes:
            raise ConfigError(f"steer.path has corners of {sizes} values: expected as many for each, at least 1")
        if not all(math.isfinite(value) for corner in self.corners for value in corner):
            raise ConfigError(f"steer: the corners {self.corners} are not all finite")
        if self.dims and not sizes:
            raise ConfigError(f"steer.dims={self.dims} belong to a point or path: give steer.target= or steer.path=")
        if self.dims and len(self.dims) != sizes[0]:
            raise ConfigError(f"steer: {sizes[0]} values a point for dims={self.dims}: expected one for each")
        if not self.strength >= 0:
            raise ConfigError(f"steer.strength={self.strength}: expected 0 or more")

    @property
    def corners(self) -> list[list[float]]:
        """Corners of the path; one for a point, none for no steering."""
        return [self.target] if self.target else list(self.path)

    @property
    def components(self) -> list[int]:
        """Action components that the corners give values for."""
        return self.dims or list(range(len(self.corners[0]) if self.corners else 0))
