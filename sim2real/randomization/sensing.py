"""What sensors and estimators get wrong: noise, bias, drift, scale, dropouts and delays of observations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import axis_angle_to_quat, matrix_to_rot6d, quat_to_matrix, rot6d_to_matrix
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.world import World
from visuomotor.sim2real.randomization.drawn import Drawing, Drawn, keys_of, slots

__all__ = ["ERRORS", "ObservationDelay", "ObservationDropout", "ObservationError", "PoseError"]

ERRORS = {"noise": "+", "bias": "+", "drift": "+", "scale": "*"}  # and the operation of each


class ObservationError(Drawn):
    """Wrong numbers in observed vectors.

    ``noise``: white, the number is its standard deviation; ``bias``: the number is added for a whole episode;
    ``drift``: so much is added a second; ``scale``: times the number. All in units of the observation.

    Args:
        kind: one of :data:`ERRORS`.
        names: patterns of observed vectors.
        how: the numbers are drawn; one for each component.

    Raises:
        ConfigError: observations that are not there, or are no vectors of decimal numbers.
    """

    senses = True

    def __init__(self, kind: str, names: Sequence[str], how: Drawing) -> None:
        least = 0.0 if kind == "noise" else None
        super().__init__(f"observation_{kind}", names, how, operation=ERRORS[kind], least=least)
        self.kind = kind

    def sense(self, obs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        if self._none or self._keys[0] not in obs:  # pictures may be shown apart from the rest
            return {}
        x = torch.cat([obs[k] for k in self._keys], 1)
        if self.kind == "noise":
            x = x + self._number * draws.normal((x.shape[1],))
        elif self.kind == "scale":
            x = x * self._number
        else:
            since = self.elapsed[:, None] * self._world.dt if self.kind == "drift" else 1.0
            x = x + self._number * since
        return dict(zip(self._keys, x.split(self._sizes, 1), strict=True))

    def _find(self, world: World) -> int:
        self._keys = keys_of(self.term, self.names, world.obs_spec, optional=self.optional)
        for k in self._keys:
            if len(world.obs_spec[k].shape) != 1 or not world.obs_spec[k].dtype.startswith("float"):
                raise ConfigError(f"{self.term}: {k!r} is no vector; what cameras get wrong are terms of their own")
        self._sizes = [world.obs_spec[k].size for k in self._keys]
        return sum(self._sizes)


class PoseError(Drawn):
    """A wrong estimate of where things are: poses with components ``<thing>_x, _y, _z`` and ``_r0 .. _r5``.

    Args:
        names: patterns of observed vectors.
        how: the standard deviation of each coordinate [m] is drawn.
        angle: standard deviation of the turn about each axis [rad] for each metre of the number.
        each_step: drawn anew in each step, instead of once an episode.

    Raises:
        ConfigError: observations without such components.
    """

    senses = True

    def __init__(self, names: Sequence[str], how: Drawing, *, angle: float, each_step: bool) -> None:
        super().__init__("pose_error", names, how, least=0.0)
        self.angle, self.each_step = angle, each_step

    def bind(self, world: World) -> None:
        super().bind(world)
        self._error = torch.zeros(world.sim.num_envs, max(len(self._poses), 1), 6, device=world.sim.device)

    def apply(self, worlds: Selection, draws: Draws) -> None:
        super().apply(worlds, draws)
        if not self._none:
            worlds.put(self._error, draws.normal((len(self._poses), 6)))

    def buffers(self) -> dict[str, Tensor]:
        return {**super().buffers(), "error": self._error}

    def sense(self, obs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        error = draws.normal((len(self._poses), 6)) if self.each_step and not self._none else self._error
        out: dict[str, Tensor] = {}
        for i, (key, xyz, rotation) in enumerate(p for p in self._poses if p[0] in obs):
            x = out.setdefault(key, obs[key].clone())
            number = self._number[:, min(i, self._number.shape[1] - 1), None]
            x[:, xyz] += number * error[:, i, :3]
            if rotation is not None:
                turn = quat_to_matrix(axis_angle_to_quat(self.angle * number * error[:, i, 3:]))
                x[:, rotation] = matrix_to_rot6d(turn @ rot6d_to_matrix(x[:, rotation]))
        return out

    def _find(self, world: World) -> int:
        self._poses: list[tuple[str, Tensor, Tensor | None]] = []
        for key in keys_of(self.term, self.names, world.obs_spec, optional=self.optional):
            known = list(world.obs_spec[key].names or ())
            things = [n[:-2] for n in known if n.endswith("_x")]
            if not things:
                raise ConfigError(f"pose_error: {key!r} has no components <thing>_x, _y, _z; expected poses")
            for thing in things:
                parts = [[f"{thing}_{a}" for a in "xyz"], [f"{thing}_r{i}" for i in range(6)]]
                found = [[known.index(n) for n in part if n in known] for part in parts]
                if len(found[0]) != 3 or len(found[1]) not in (0, 6):
                    raise ConfigError(f"pose_error: {thing!r} in {key!r} has only some of the components of a pose")
                xyz, rotation = (torch.tensor(f, dtype=torch.int64, device=world.sim.device) for f in found)
                self._poses.append((key, xyz, rotation if len(rotation) else None))
        return len(self._poses)


class _Remembering(Drawn):
    """Shows what was there before: keeps the last steps of each key. Slot ``t mod depth`` holds step ``t``."""

    senses = True

    def bind(self, world: World) -> None:
        super().bind(world)
        n, device, specs = world.sim.num_envs, world.sim.device, world.obs_spec
        self._past = {
            k: torch.zeros(n, self._depth(), *specs[k].shape, dtype=getattr(torch, specs[k].dtype), device=device)
            for k in self._keys
        }
        self._rows = torch.arange(n, device=device)

    def buffers(self) -> dict[str, Tensor]:
        return {**super().buffers(), **{f"past.{k}": v for k, v in self._past.items()}}

    def _find(self, world: World) -> int:
        self._keys = keys_of(self.term, self.names, world.obs_spec, optional=self.optional)
        return len(self._keys)

    def _number_of(self, i: int) -> Tensor:
        return self._number[:, min(i, self._number.shape[1] - 1)]

    def _depth(self) -> int:
        raise NotImplementedError


class ObservationDelay(_Remembering):
    """Observations are late by a number of seconds, rounded to control steps; before that, the first one is shown.

    Args:
        names: patterns of observations, cameras included.
        how: the delay [s] is drawn, with the operation ``+``.
    """

    def __init__(self, names: Sequence[str], how: Drawing) -> None:
        super().__init__("observation_delay", names, how, least=0.0)

    def sense(self, obs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for i, key in enumerate(self._keys):
            if key not in obs:
                continue
            past, t = self._past[key], self.elapsed
            past[self._rows, t % past.shape[1]] = obs[key]
            late = (self._number_of(i) / self._world.dt).round().long().minimum(t)
            out[key] = past[self._rows, (t - late) % past.shape[1]]
        return out

    def _depth(self) -> int:
        return slots(self.spread, self._world.dt)


class ObservationDropout(_Remembering):
    """In each step an observation fails to come with some probability; then the last one that came is shown.

    Args:
        names: patterns of observations, cameras included.
        how: the probability is drawn, with the operation ``+``.
    """

    def __init__(self, names: Sequence[str], how: Drawing) -> None:
        if how.spread.largest > 1:
            raise ConfigError(f"observation_dropout: a probability up to {how.spread.largest:g}; expected 1 or less")
        super().__init__("observation_dropout", names, how, least=0.0)

    def sense(self, obs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        if self._none:
            return {}
        u, t = draws.uniform((len(self._keys),)), self.elapsed
        out: dict[str, Tensor] = {}
        for i, key in enumerate(self._keys):
            if key not in obs:
                continue
            past = self._past[key]
            lost = (u[:, i] < self._number_of(i)) & (t > 0)
            before = past[self._rows, (t - 1) % 2]
            shown = torch.where(lost.view(-1, *[1] * (before.ndim - 1)), before, obs[key])
            past[self._rows, t % 2] = shown
            out[key] = shown
        return out

    def _depth(self) -> int:
        return 2
