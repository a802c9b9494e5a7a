"""Which steps of which episode make one training sample. Imports without torch.

A window is ``horizon`` consecutive steps; its first ``n_obs`` are observed, and the policy executes ``n_exec`` actions
from the last observed one on. Windows may reach past either end of an episode: the missing steps are copies of the
episode's first or last step (edge padding), as in Chi et al. 2023, "Diffusion Policy".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.errors import ConfigError, DataError

__all__ = ["WindowConfig", "WindowTable", "split_episodes", "window_table"]

IntArray = NDArray[np.int64]


@dataclass(kw_only=True, slots=True)
class WindowConfig:
    """Shape of a training sample. The defaults are Diffusion Policy's: ``L - 7`` windows in an episode of ``L`` steps.

    Attributes:
        n_obs: observed steps (``To``).
        horizon: predicted steps (``H``); the prediction starts at the first observed step.
        n_exec: actions that are executed of each prediction (``Ta``), from index ``n_obs - 1`` on.
        pad_before: steps that a window may begin before its episode; None is ``n_obs - 1``.
        pad_after: steps that a window may end after its episode; None is ``n_exec - 1``. Chunks that must reach the
            end of the episode (ACT, Zhao et al. 2023) take ``horizon - 1`` with ``mask_padding``.
        mask_padding: leave padded steps out of the loss.

    Raises:
        ConfigError: the numbers contradict each other.
    """

    n_obs: int = 2
    horizon: int = 16
    n_exec: int = 8
    pad_before: int | None = None
    pad_after: int | None = None
    mask_padding: bool = False

    def __post_init__(self) -> None:
        for name in ("n_obs", "horizon", "n_exec"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at least 1")
        needed = self.n_obs - 1 + self.n_exec
        if self.horizon < needed:
            raise ConfigError(
                f"horizon={self.horizon} is too short for n_obs={self.n_obs} and n_exec={self.n_exec}: the prediction"
                f" starts at the first observed step, so {max(0, self.horizon - self.n_obs + 1)} of its actions lie at"
                f" or after the present, and {self.n_exec} are to be executed. Expected horizon >= n_obs - 1 + n_exec ="
                f" {needed}."
            )
        if not 0 <= self.pads[0] <= self.n_obs - 1:
            raise ConfigError(
                f"pad_before={self.pad_before}: expected 0..n_obs-1 = 0..{self.n_obs - 1}; beyond that the whole"
                " observation would lie before the episode"
            )
        if not 0 <= self.pads[1] <= self.horizon - 1:
            raise ConfigError(
                f"pad_after={self.pad_after}: expected 0..horizon-1 = 0..{self.horizon - 1}; beyond that the whole"
                " window would lie after the episode"
            )

    @property
    def pads(self) -> tuple[int, int]:
        """``(pad_before, pad_after)`` with the defaults filled in."""
        before = self.n_obs - 1 if self.pad_before is None else self.pad_before
        after = self.n_exec - 1 if self.pad_after is None else self.pad_after
        return before, after

    @property
    def min_length(self) -> int:
        """Steps of the shortest episode that yields a window."""
        return max(1, self.horizon - sum(self.pads))


@dataclass(frozen=True)
class WindowTable:
    """One row a window; ``W`` windows, ordered by episode and start.

    Step ``i`` of a window is row ``clip(start + i, ep_start, ep_stop - 1)`` of the store.
    """

    start: IntArray  # [W] row of the window's first step; may lie before ep_start
    ep_start: IntArray  # [W] first row of its episode
    ep_stop: IntArray  # [W] row after the last of its episode
    episode: IntArray  # [W] index of its episode
    skipped: tuple[int, ...]  # episodes too short to yield a window

    def __len__(self) -> int:
        return len(self.start)


def window_table(episode_ends: IntArray, config: WindowConfig, episodes: Sequence[int] | None = None) -> WindowTable:
    """List the windows of ``episodes`` (all when None) of a store with ``episode_ends [E]``.

    An episode of ``L`` steps yields the starts ``-pad_before .. L - horizon + pad_after``.

    Raises:
        DataError: no episodes, ends that do not increase, an episode that does not exist or is named twice, or not one
            episode that is long enough.
    """
    ends = np.asarray(episode_ends, np.int64)
    if ends.ndim != 1 or len(ends) == 0:
        raise DataError(f"the store holds no episodes (episode_ends has shape {ends.shape})")
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts
    if (lengths < 1).any():
        bad = int(np.argmax(lengths < 1))
        raise DataError(f"episode_ends must increase: episode {bad} runs from row {starts[bad]} to row {ends[bad]}")
    chosen = np.arange(len(ends)) if episodes is None else _checked(episodes, len(ends))

    before, after = config.pads
    count = np.maximum(lengths[chosen] - config.horizon + after + before + 1, 0)
    if not count.any():
        raise DataError(
            f"none of {len(chosen)} episodes yields a window: the longest has {lengths[chosen].max(initial=0)} steps,"
            f" and horizon={config.horizon}, pad_before={before}, pad_after={after} need at least {config.min_length}"
        )
    episode = np.repeat(chosen, count)
    first_window = np.repeat(np.cumsum(count) - count, count)
    return WindowTable(
        start=starts[episode] - before + np.arange(len(episode)) - first_window,
        ep_start=starts[episode],
        ep_stop=ends[episode],
        episode=episode,
        skipped=tuple(int(e) for e in chosen[count == 0]),
    )


def _checked(episodes: Sequence[int], n_episodes: int) -> IntArray:
    chosen = np.asarray(episodes, np.int64).reshape(-1)
    outside = chosen[(chosen < 0) | (chosen >= n_episodes)]
    if len(outside):
        raise DataError(f"episode {outside[0]} does not exist: the store has episodes 0..{n_episodes - 1}")
    unique, counts = np.unique(chosen, return_counts=True)
    if len(unique) < len(chosen):
        raise DataError(f"episode {unique[counts > 1][0]} is named twice")
    return unique


def split_episodes(n_episodes: int, val_fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """Divide whole episodes into training and validation: two sorted, disjoint index arrays that cover all.

    Validation gets ``round(val_fraction * n_episodes)`` episodes, at least one when ``val_fraction > 0`` and at most
    all but one; of a single episode nothing is held out. Windows of one episode overlap: to split windows would leak.

    Raises:
        ConfigError: ``val_fraction`` outside ``[0, 1)``, or a negative seed.
    """
    if not 0 <= val_fraction < 1:
        raise ConfigError(f"val_fraction={val_fraction}: expected 0 <= val_fraction < 1")
    if seed < 0:
        raise ConfigError(f"seed={seed}: expected 0 or more")
    n_val = min(max(1, round(val_fraction * n_episodes)), n_episodes - 1) if val_fraction > 0 else 0
    order = np.random.default_rng(seed).permutation(n_episodes)
    return np.sort(order[n_val:]), np.sort(order[:n_val])
