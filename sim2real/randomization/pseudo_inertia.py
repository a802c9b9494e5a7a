"""Mass, centre and rotational inertia of bodies perturbed together, such that a body with them can exist.

The pseudo-inertia of a body is the 4 x 4 matrix of the moments of its mass up to the second order; it is positive
definite for every real distribution of mass. C. Rucker and P. Wensing 2022, "Smooth Parameterization of Rigid-Body
Inertia" (IEEE RA-L 7(2)) write it as ``U U^T`` with an upper triangular ``U`` whose diagonal is an exponential: every
choice of the ten numbers is a body. Here ``U`` acts on coordinates in which the nominal body is the identity: principal
axes through its centre, each in units of its radius of gyration, masses in units of its mass. So all ten numbers are
shares, and zero changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
import torch
from array_api_compat import array_namespace
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.rotations import matrix_to_quat, quat_multiply, quat_to_matrix
from visuomotor.envs.sim.arrays import words
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.naming import labels, listed, matching, spec_bodies
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.spread import Source, Spread
from visuomotor.envs.sim.world import World
from visuomotor.envs.sim.written import Written

__all__ = ["PARTS", "PseudoInertia", "perturbed", "principal_axes"]

PARTS = {"scale": slice(0, 1), "stretch": slice(1, 4), "shear": slice(4, 7), "shift": slice(7, 10)}
Array = Any  # numpy.ndarray or torch.Tensor
_SWEEPS = 5  # of Jacobi's method: 3 x 3 matrices converge quadratically after the second


def perturbed(mass: Array, inertia: Array, theta: Array) -> tuple[Array, Array, Array, Array]:
    """A body whose pseudo-inertia is perturbed.

    Args:
        mass: ``[...]`` [kg].
        inertia: principal moments ``[..., 3]`` [kg m^2].
        theta: ``[..., 10]``: log-scale, log-stretch of three axes, shear (12, 13, 23), shift of three axes. The mass
            changes by ``exp(2 scale)``, an axis by ``exp(stretch)``; shifts are in radii of gyration.

    Returns:
        mass ``[...]``; centre ``[..., 3]`` [m] and turn ``q_wxyz [..., 4]`` of the new principal frame in the old one;
        principal moments ``[..., 3]``.
    """
    xp = array_namespace(mass)
    scale, shift = theta[..., 0], theta[..., PARTS["shift"]]
    e1, e2, e3 = (xp.exp(theta[..., i]) for i in range(1, 4))
    s12, s13, s23 = (theta[..., i] for i in range(4, 7))
    zero = xp.zeros_like(scale)
    second = xp.sum(inertia, axis=-1)[..., None] / 2 - inertia  # of the mass along each axis
    radius = xp.sqrt(xp.where(second > 0, second, xp.zeros_like(second)) / mass[..., None])
    rows = [e1, s12, s13, zero, e2, s23, zero, zero, e3]
    a = xp.reshape(xp.stack(rows, axis=-1), (*scale.shape, 3, 3)) * radius[..., None]
    mass = mass * xp.exp(2.0 * scale)
    spread, turn = principal_axes(a @ xp.matrix_transpose(a))  # a plane or a rod keeps its zeros
    second = mass[..., None] * xp.where(spread > 0, spread, xp.zeros_like(spread))
    return mass, radius * shift, turn, xp.sum(second, axis=-1)[..., None] - second


def principal_axes(c: Array) -> tuple[Array, Array]:
    """Eigenvalues ``[..., 3]`` of symmetric ``c [..., 3, 3]``, and the turn ``q_wxyz [..., 4]`` to the eigenvectors."""
    if not isinstance(c, np.ndarray):
        found, vectors = _jacobi(c)  # eigh would make the host wait for the device, to ask whether it converged
        return found, matrix_to_quat(vectors)
    flat = c.reshape(-1, 9).astype(np.float64)
    values, quats, axes = np.empty((len(flat), 3)), np.empty((len(flat), 4)), np.empty(9)
    for matrix, value, quat in zip(flat, values, quats, strict=True):
        mujoco.mju_eig3(value, axes, quat, matrix)
    shape = c.shape[:-2]
    return values.reshape(*shape, 3).astype(c.dtype), quats.reshape(*shape, 4).astype(c.dtype)


def _jacobi(c: Tensor) -> tuple[Tensor, Tensor]:
    """Jacobi's rotations, a fixed number of them (Golub and Van Loan, "Matrix Computations", section 8.5)."""
    axes = torch.eye(3, dtype=c.dtype, device=c.device).expand(c.shape).clone()
    for _ in range(_SWEEPS):
        for p, q in ((0, 1), (0, 2), (1, 2)):
            angle = 0.5 * torch.atan2(2.0 * c[..., p, q], c[..., q, q] - c[..., p, p])
            cos, sin = angle.cos(), angle.sin()
            turn = torch.eye(3, dtype=c.dtype, device=c.device).expand(c.shape).clone()
            turn[..., p, p], turn[..., q, q], turn[..., p, q], turn[..., q, p] = cos, cos, sin, -sin
            c, axes = turn.mT @ c @ turn, axes @ turn
    return torch.diagonal(c, dim1=-2, dim2=-1), axes


class PseudoInertia(Event):
    """Perturbs the pseudo-inertia of bodies; see :func:`perturbed`.

    Args:
        names: patterns of bodies.
        spread: of the ten numbers, with the operation ``+``.
        parts: which of :data:`PARTS` vary.
        shared: the same numbers for all bodies of a world.
        optional: names may match nothing.
        when: ``startup`` or ``reset``.

    Raises:
        ConfigError: another operation, an unknown part, or a body without mass.
    """

    changes_constants = True

    def __init__(
        self, names: Sequence[str], spread: Spread, *, parts: Sequence[str] = tuple(PARTS), shared: bool = False,
        optional: bool = False, when: str = "reset",
    ) -> None:  # fmt: skip
        if spread.operation != "+":
            raise ConfigError(f"pseudo_inertia: operation {spread.operation!r}; expected '+': zero changes nothing")
        for part in parts:
            if part not in PARTS:
                raise ConfigError(f"pseudo_inertia: unknown part {part!r}. {nearest(part, PARTS)}")
        self.names, self.spread, self.parts = listed(names, "pseudo_inertia"), spread, tuple(parts)
        self.shared, self.optional, self.when = shared, optional, when
        self.source: Source = spread

    def prepare(self, scene: mujoco.MjSpec) -> None:
        for body in spec_bodies(scene, self.names):
            body.simple = False  # else its inertia is stored in a form that needs its axes at its origin

    def bind(self, world: World) -> None:
        sim = world.sim
        ids = matching(sim.model, "body", self.names, optional=self.optional)
        if empty := [labels(sim.model, "body")[i] for i in ids if sim.model.body_mass[i] <= 0]:
            raise ConfigError(f"pseudo_inertia: {', '.join(empty)} have no mass; expected bodies that have some")
        index = torch.tensor(ids, dtype=torch.int64, device=sim.device)
        fields = (("body_mass", None), *((f"body_{n}", slice(None)) for n in ("inertia", "ipos", "iquat")))
        self._fields = [Written(sim, name, part, index) for name, part in fields] if ids else []
        self._things = len(ids)
        varied = torch.zeros(10, device=sim.device)
        for part in self.parts:
            varied[PARTS[part]] = 1.0
        self._varied = varied

    def written(self) -> list[Written]:
        return self._fields

    def apply(self, worlds: Selection, draws: Draws) -> None:
        if not self._fields:
            return
        theta = self.source.draw(draws, (1 if self.shared else self._things, 10), worlds) * self._varied
        theta = words(theta.expand(-1, self._things, -1).to(self._fields[0].nominal.dtype))
        old = [words(f.base(worlds)) for f in self._fields]  # on the CPU NumPy is faster with a few bodies
        mass, inertia, pos, quat = old
        xp = array_namespace(theta)
        new_mass, centre, turn, new_inertia = perturbed(mass + xp.zeros_like(theta[..., 0]), inertia, theta)
        moved = pos + (quat_to_matrix(quat) @ centre[..., None])[..., 0]
        turned = quat_multiply(quat + xp.zeros_like(turn), turn)
        still = xp.all(theta == 0, axis=-1)
        new = (new_mass, new_inertia, moved, turned)
        for field, before, after in zip(self._fields, old, new, strict=True):
            kept = still if before is mass else still[..., None]
            field.put(worlds, xp.where(kept, before, after))
