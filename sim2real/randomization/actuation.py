"""What comes between a policy and the motors: noise on actions, commands late or lost, encoders that are off."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.envs.robots.arm import Arm
from visuomotor.envs.sim.control import Control, JoinedControl
from visuomotor.envs.sim.naming import labels, matching
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.world import World
from visuomotor.envs.sim.written import Written
from visuomotor.sim2real.randomization.drawn import Drawing, Drawn, columns_of, slots

__all__ = ["ERRORS", "ActionError", "CommandDropout", "ControlDelay", "EncoderOffset"]

ERRORS = {"noise": "+", "bias": "+", "scale": "*"}  # and the operation of each
_NEVER = 1 << 40


class ActionError(Drawn):
    """Wrong numbers in actions.

    ``noise``: white, the number is its standard deviation; ``bias``: added for a whole episode; both are shares of half
    the range that a component has, or its unit where it has no bounds. ``scale``: times the number.

    Args:
        kind: one of :data:`ERRORS`.
        names: patterns of components of the action.
        how: the numbers are drawn; one for each component.
    """

    acts = True

    def __init__(self, kind: str, names: Sequence[str], how: Drawing) -> None:
        least = 0.0 if kind == "noise" else None
        super().__init__(f"action_{kind}", names, how, operation=ERRORS[kind], least=least)
        self.kind = kind

    def act(self, action: Tensor, given: Tensor | None, draws: Draws) -> tuple[Tensor, Tensor | None]:
        if self._none:
            return action, given
        new, c = action.clone(), self._columns
        if self.kind == "scale":
            new[:, c] *= self._number
        else:
            white = draws.normal((len(c),)) if self.kind == "noise" else 1.0
            new[:, c] += self._number * self._unit * white
        return new, given

    def _find(self, world: World) -> int:
        assert world.control is not None
        control, device = world.control, world.sim.device
        columns = columns_of(self.term, self.names, control.spec, optional=self.optional)
        self._columns = torch.tensor(columns, dtype=torch.int64, device=device)
        half = (control.high - control.low)[self._columns] / 2
        self._unit = torch.where(half.isfinite(), half, 1.0)
        return len(columns)


class ControlDelay(Drawn):
    """Commands reach the arm late; in whole control steps. Until one comes the arm keeps its targets.

    With ``jitter`` every command has a delay of its own, from none to the number of the episode, and one that comes
    after a later one is of no use: then some steps bring nothing, and some commands are never heard of, as on a busy
    network. An action that says how far to move is lost with its command.

    Args:
        how: the delay [s] is drawn.
        jitter: the number is the longest delay of a command, not that of all.
    """

    acts = True

    def __init__(self, how: Drawing, *, jitter: bool) -> None:
        super().__init__("control_jitter" if jitter else "control_delay", ["*"], how, least=0.0)
        self.jitter = jitter

    def bind(self, world: World) -> None:
        super().bind(world)
        n, device = world.sim.num_envs, world.sim.device
        assert world.control is not None
        depth = slots(self.spread, world.dt)
        self._sent = torch.zeros(n, depth, world.control.spec.size, device=device)
        self._arrival = torch.full((n, depth), _NEVER, dtype=torch.int64, device=device)  # step at which it is there
        self._last = torch.full((n,), -1, dtype=torch.int64, device=device)  # step of the command that acted last
        self._rows = torch.arange(n, device=device)

    def apply(self, worlds: Selection, draws: Draws) -> None:
        super().apply(worlds, draws)
        worlds.put(self._arrival, _NEVER)
        worlds.put(self._last, -1)

    def buffers(self) -> dict[str, Tensor]:
        return {**super().buffers(), "sent": self._sent, "arrival": self._arrival, "last": self._last}

    def act(self, action: Tensor, given: Tensor | None, draws: Draws) -> tuple[Tensor, Tensor | None]:
        t, depth = self.elapsed, self._sent.shape[1]
        seconds = self._number[:, 0] * (draws.uniform() if self.jitter else 1.0)
        arrival = t + (seconds / self._world.dt).round().long()
        slot, rows = t % depth, self._rows
        never = torch.full_like(arrival, _NEVER)
        self._sent[rows, slot] = action
        self._arrival[rows, slot] = arrival if given is None else torch.where(given, arrival, never)
        age = (t[:, None] - torch.arange(depth, device=t.device)) % depth  # of what is in each slot [N, depth]
        issued = t[:, None] - age
        usable = (self._arrival <= t[:, None]) & (issued > self._last[:, None]) & (issued >= 0)
        newest, where = torch.where(usable, issued, -1).max(1)
        comes = newest >= 0
        self._last.copy_(torch.where(comes, newest, self._last))
        return self._sent[rows, where], comes

    def _find(self, world: World) -> int:
        return 1


class CommandDropout(Drawn):
    """In each step the command is lost with some probability; the arm then keeps its targets.

    Args:
        how: the probability is drawn.
    """

    acts = True

    def __init__(self, how: Drawing) -> None:
        if how.spread.largest > 1:
            raise ConfigError(f"command_dropout: a probability up to {how.spread.largest:g}; expected 1 or less")
        super().__init__("command_dropout", ["*"], how, least=0.0)

    def act(self, action: Tensor, given: Tensor | None, draws: Draws) -> tuple[Tensor, Tensor | None]:
        comes = draws.uniform() >= self._number[:, 0]
        return action, comes if given is None else comes & given

    def _find(self, world: World) -> int:
        return 1


class EncoderOffset(Drawn):
    """Encoders that are off: the arm believes that its joints are where they are not.

    What is read, commanded and limited stays as it is; the links stand elsewhere. (The joints' ``qpos0``, at which
    MuJoCo has a joint's displacement be zero, moves.) Observed poses of the hand are those that the arm computes from
    what it reads.

    Args:
        names: patterns of hinge and slide joints.
        how: the offset [rad or m] is drawn, reading minus truth.
    """

    changes_constants, changes_state = True, True

    def __init__(self, names: Sequence[str], how: Drawing) -> None:
        super().__init__("encoder_offset", names, how)

    def _find(self, world: World) -> int:
        m, known = world.sim.model, labels(world.sim.model, "joint")
        ids = matching(m, "joint", self.names, optional=self.optional)
        joints = world.joints([known[i] for i in ids]) if ids else None
        self._fields: list[Written] = []
        if joints is not None:
            index = torch.tensor([int(m.jnt_qposadr[i]) for i in ids], device=world.sim.device)
            self._fields = [Written(world.sim, name, None, index) for name in ("qpos0", "qpos_spring")]
            for arm in _arms(world.control):
                arm.by_encoders = arm.by_encoders or bool(set(arm.joints.names) & set(joints.names))
        return len(ids)

    def written(self) -> list[Written]:
        return self._fields

    def apply(self, worlds: Selection, draws: Draws) -> None:
        super().apply(worlds, draws)
        for field in self._fields:
            field.put(worlds, field.base(worlds) + worlds.take(self._number).to(field.nominal.dtype))


def _arms(control: Control | None) -> list[Arm]:
    if isinstance(control, JoinedControl):
        return [arm for part in control.parts for arm in _arms(part)]
    return [control] if isinstance(control, Arm) else []
