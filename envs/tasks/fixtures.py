"""Things that stand where a reset puts them and that nothing moves: cabinets, blocks, markers of goals."""

from __future__ import annotations

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import quat_to_matrix
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.simulator import Simulator
from visuomotor.envs.sim.world import find
from visuomotor.envs.tasks.tabletop import yaw_quat

__all__ = ["Fixture", "wrap", "yaw_matrix", "yaw_of"]


class Fixture:
    """A mocap body: its pose is an input of the simulation, one a world.

    Raises:
        ConfigError: no body of that name, or one that is not a mocap body.
    """

    def __init__(self, sim: Simulator, name: str) -> None:
        index = int(sim.model.body_mocapid[find(sim.model, "body", name)])
        if index < 0:
            raise ConfigError(f"body {name!r} is no mocap body")
        self._pos, self._quat = sim.field("mocap_pos")[:, index], sim.field("mocap_quat")[:, index]

    def place(self, worlds: Selection, pos: Tensor, yaw: Tensor) -> None:
        """Put it at ``pos [rows, 3]`` [m], turned about the vertical by ``yaw [rows]`` [rad]."""
        self.place_turned(worlds, pos, yaw_quat(yaw))

    def place_turned(self, worlds: Selection, pos: Tensor, quat: Tensor) -> None:
        """Put it at ``pos [rows, 3]`` [m] with ``quat [rows, 4]`` (wxyz)."""
        worlds.put(self._pos, pos)
        worlds.put(self._quat, quat)

    def pos(self) -> Tensor:
        """Float32 ``[N, 3]`` [m], world frame."""
        return self._pos.float()

    def quat(self) -> Tensor:
        """Float32 ``[N, 4]``, ``q_wxyz``."""
        return self._quat.float()

    def matrix(self) -> Tensor:
        """Float32 ``[N, 3, 3]``: its axes are the columns, world frame."""
        matrix: Tensor = quat_to_matrix(self._quat.float())
        return matrix


def yaw_matrix(yaw: Tensor) -> Tensor:
    """Matrices ``[..., 3, 3]`` of rotations about z by ``yaw [...]`` [rad]."""
    matrix: Tensor = quat_to_matrix(yaw_quat(yaw))
    return matrix


def yaw_of(matrix: Tensor) -> Tensor:
    """Direction ``[...]`` [rad] of the x axis of ``matrix [..., 3, 3]`` in the horizontal plane."""
    return torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])


def wrap(angle: Tensor, period: float) -> Tensor:
    """The same angle modulo ``period``, in ``[-period / 2, period / 2)``."""
    return torch.remainder(angle + period / 2, period) - period / 2
