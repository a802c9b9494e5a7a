"""What an action does to a simulation: the protocol, and the plain case of driving actuators directly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from visuomotor.data.spec import ArraySpec
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.world import World, names_of

__all__ = ["ActuatorControl", "Control", "JoinedControl"]


class Control(ABC):
    """Turns actions ``[N, Da]`` into actuator inputs.

    Attributes:
        spec: shape ``[Da]``, unit and names of an action.
        low, high: its bounds ``[Da]``; actions are clipped to them.
    """

    spec: ArraySpec
    low: Tensor
    high: Tensor

    @abstractmethod
    def reset(self, worlds: Selection) -> None:
        """Forget the past of worlds whose state was set anew."""

    @abstractmethod
    def apply(self, action: Tensor, active: Tensor | None) -> None:
        """Write ``ctrl`` for one control step; worlds outside ``active [N]`` (None: all act) keep what they had."""

    def buffers(self) -> dict[str, Tensor]:
        """Live tensors ``[N, ...]`` that a snapshot has to hold."""
        return {}


class ActuatorControl(Control):
    """The action is the actuators' input, in the model's units, within ``ctrlrange``."""

    def __init__(self, world: World) -> None:
        m = world.sim.model
        low, high = torch.tensor(m.actuator_ctrlrange, dtype=torch.float32, device=world.sim.device).T
        limited = torch.tensor(m.actuator_ctrllimited, device=world.sim.device).bool()
        inf = torch.tensor(torch.inf, device=world.sim.device)
        self.low, self.high = torch.where(limited, low, -inf), torch.where(limited, high, inf)
        self.spec = ArraySpec(shape=(m.nu,), role="action", names=tuple(names_of(m, "actuator")))
        self._ctrl = world.sim.field("ctrl")

    def reset(self, worlds: Selection) -> None:
        pass

    def apply(self, action: Tensor, active: Tensor | None) -> None:
        ctrl = torch.clamp(action, self.low, self.high)
        self._ctrl.copy_(
            ctrl if active is None else torch.where(active[:, None], ctrl.to(self._ctrl.dtype), self._ctrl)
        )


class JoinedControl(Control):
    """Several controls, their actions end to end: two arms.

    Attributes:
        parts: one after the other.
    """

    def __init__(self, parts: Sequence[Control]) -> None:
        self.parts = list(parts)
        self._sizes = [p.spec.size for p in parts]
        self.low, self.high = torch.cat([p.low for p in parts]), torch.cat([p.high for p in parts])
        units = {p.spec.unit for p in parts}
        names = tuple(n for p in parts for n in p.spec.names or ())
        self.spec = ArraySpec(
            shape=(sum(self._sizes),), role="action", names=names, unit=units.pop() if len(units) == 1 else None
        )

    def reset(self, worlds: Selection) -> None:
        for p in self.parts:
            p.reset(worlds)

    def apply(self, action: Tensor, active: Tensor | None) -> None:
        for p, a in zip(self.parts, action.split(self._sizes, 1), strict=True):
            p.apply(a, active)

    def buffers(self) -> dict[str, Tensor]:
        return {f"{i}.{k}": v for i, p in enumerate(self.parts) for k, v in p.buffers().items()}
