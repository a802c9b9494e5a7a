"""One chunk after the other: observe, predict, execute some steps of it, predict again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.execution.planner import Planner, Previous
from visuomotor.policies.execution.seams import Seams

__all__ = ["RecedingHorizon", "check_timing"]


def check_timing(window: WindowConfig, n_exec: int, delay: int) -> None:
    """Refuse a rhythm that chunks of ``window`` cannot keep up.

    With ``F`` steps of a chunk from the present on: ``delay <= n_exec <= F - delay`` (arXiv:2506.07339, section 3).

    Raises:
        ConfigError: the next chunk would come too late, or be asked for before the last one is there.
    """
    ahead = window.horizon - window.n_obs + 1
    if 2 * delay > ahead:
        raise ConfigError(
            f"delay={delay}: the policy predicts {ahead} steps from the present on, of which as many pass until the "
            f"next chunk is asked for, and again until it is there: expected at most {ahead // 2}"
        )
    if not 1 <= n_exec <= ahead - delay:
        late = f" and the next one comes {delay} steps after its observation" if delay else ""
        raise ConfigError(
            f"n_exec={n_exec}: the policy predicts {window.horizon} steps from the first of {window.n_obs} observed "
            f"ones, so 1 to {ahead} can be executed{late}: expected {max(1, delay)} to {ahead - delay}"
        )
    if delay > n_exec:
        raise ConfigError(
            f"delay={delay} with n_exec={n_exec}: the next chunk would be asked for before the last one is there; "
            f"expected n_exec of {delay} to {ahead - delay}"
        )


class RecedingHorizon:
    """Observe ``n_obs`` steps, predict ``horizon``, execute ``n_exec`` of them, predict again.

    Keeps the chunk and the place in it for every world, so worlds may start and end at any time; evaluation and robot
    use the same object. A chunk made from the observation of step ``k`` takes over at step ``k + delay``, at the action
    that it has for that step; until then the previous chunk goes on. The first chunk of an episode is waited for.

    Args:
        planner: makes the chunks.
        n_exec: control steps from one chunk to the next; None takes the policy's own.
        delay: control steps between an observation and its chunk.

    Attributes:
        n_exec: control steps from one chunk to the next.
        seams: how far commands jumped between them so far.

    Raises:
        ConfigError: see :func:`check_timing`.
    """

    def __init__(self, planner: Planner, *, n_exec: int | None = None, delay: int = 0) -> None:
        spec, n = planner.spec, planner.num_envs
        self._planner, self._delay = planner, delay
        self.n_exec = spec.window.n_exec if n_exec is None else n_exec
        check_timing(spec.window, self.n_exec, delay)
        self._present, self._horizon = spec.window.n_obs - 1, spec.window.horizon
        self._chunk = torch.zeros(n, self._horizon, spec.action.size, device=planner.device)
        self._coming = torch.zeros_like(self._chunk)  # asked for last; takes over at age `delay`
        self._pending = torch.zeros(n, dtype=torch.bool)
        self._at = torch.zeros(n, dtype=torch.int64)  # place in the chunk
        self._age = torch.full((n,), self.n_exec)  # control steps since the last plan; n_exec asks for a new one
        self._empty = torch.ones(n, dtype=torch.bool)  # no chunk of this episode yet
        self._past = self._chunk[:, : self._present].clone()  # what was executed last
        self._worlds = torch.arange(n)
        self.seams = Seams(spec, n, planner.device)

    def reset(self, seeds: Sequence[int] | None = None, mask: Tensor | None = None) -> None:
        """Begin new episodes in the worlds of ``mask [N]`` (all without it), with one seed a world."""
        which = self._planner.reset(seeds, mask)
        self._age[which] = self.n_exec
        self._empty[which] = True
        self._pending[which] = False

    def act(self, obs: Mapping[str, Tensor], active: Tensor | None = None) -> Tensor:
        """The next action of every world, ``{key: [N, ...]} -> [N, Da]``. Nothing is planned outside ``active [N]``."""
        self._planner.observe(obs)
        first = self._empty.clone()
        taken_over = self._take_over() if self._delay else None
        due = self._age >= self.n_exec
        if active is not None:
            due &= active.cpu()
        worlds = due.nonzero().flatten()
        if len(worlds):
            self._plan(worlds)
        seam = self._take_over() if taken_over is None else taken_over
        action = self._chunk[self._worlds, self._at.clamp(max=self._horizon - 1)]
        self._remember(action, seam, first, active)
        self._at += 1
        self._age += 1
        return action

    def _plan(self, worlds: Tensor) -> None:
        chunk = self._planner.plan(worlds, self._previous(worlds))
        self._coming[worlds] = chunk
        new = self._empty[worlds]
        begin = worlds[new]
        self._chunk[begin] = chunk[new.to(chunk.device)]
        self._at[begin] = self._present
        self._pending[worlds] = ~new
        self._empty[worlds] = False
        self._age[worlds] = 0

    def _take_over(self) -> Tensor:
        """Put the chunks that are there now in the place of the previous ones; ``[N]`` where that happened."""
        now = self._pending & (self._age == self._delay)
        if bool(now.any()):
            self._chunk = torch.where(now.to(self._chunk.device)[:, None, None], self._coming, self._chunk)
            self._at[now] = self._present + self._delay
            self._pending &= ~now
        return now

    def _previous(self, worlds: Tensor) -> Previous:
        place = self._at[worlds, None] + torch.arange(self._horizon - self._present)
        ahead = self._chunk[worlds[:, None], place.clamp(max=self._horizon - 1)]
        exists = ~self._empty[worlds]
        return Previous(torch.cat([self._past[worlds], ahead], dim=1), exists.to(self._chunk.device))

    def _remember(self, action: Tensor, seam: Tensor, first: Tensor, active: Tensor | None) -> None:
        device = action.device
        rolled = torch.cat([self._past, action[:, None]], dim=1)[:, 1:]
        # Before its first action an episode has done nothing: repeat the action, as the windows of training do.
        self._past = torch.where(first.to(device)[:, None, None], action[:, None].expand_as(rolled), rolled)
        counts = ~first if active is None else ~first & active.cpu()
        self.seams.add(action, seam.to(device), counts.to(device))
