"""What is to be identified: physical quantities as numbers with a prior, and how they are written into a model.

An unknown is measured in standard deviations ``z`` of its prior about the nominal value. Quantities that are positive
and not 0 in the model vary by a factor, ``value = nominal * exp(width * z)``; the others by a shift,
``value = nominal + width * z``, which stays above its floor. All of a body's inertia is varied so that it stays
physical: the second moment of its mass about its centre is ``S Sigma S^T`` with ``S`` upper triangular and positive on
the diagonal (the log-Cholesky parameters of Rucker and Wensing 2022, "Smooth Parameterization of Rigid-Body Inertia",
about the centre of mass).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import mujoco
import numpy as np

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.rotations import quat_to_matrix
from visuomotor.envs.robots.model import RobotModel
from visuomotor.envs.sim.quantities import QUANTITIES, Quantity
from visuomotor.envs.sim.world import names_of

__all__ = ["DEFAULT_WIDTHS", "DELAYS", "FITTABLE", "SHARES", "Block", "Unknowns", "choose"]

DELAYS = ("actuator_delay", "sensor_delay")
"""Delay from a command to its effect, and from the motion to its measurement: one number for the whole arm [s]."""

DEFAULT_WIDTHS = {
    "mass": 0.3, "center_of_mass": 0.03, "inertia": 0.3, "damping": 1.0, "friction_loss": 1.0, "armature": 0.7,
    "position_gain": 0.3, "velocity_gain": 0.3, "force_limit": 0.3, "actuator_delay": 0.02, "sensor_delay": 0.02,
}  # fmt: skip
"""Standard deviations of the priors: of a factor's logarithm; [m] of centres, [s] of delays."""
FITTABLE = tuple(DEFAULT_WIDTHS)
SHARES = {"friction_loss": 0.03, "damping": 0.03, "armature": 0.3}
"""The same for what is 0 in the model: shares of the joint's force limit (for damping at 1 rad/s) or of its inertia."""
_REACH = 3.0  # prior standard deviations to the bounds


@dataclass(frozen=True, kw_only=True)
class Block:
    """Unknowns that are written together.

    Attributes:
        quantity: one of :data:`FITTABLE`.
        thing: name of the body, joint or actuator in the robot's own model; ``arm`` for delays.
        names: of its ``k`` numbers.
        unit: of each.
        nominal: ``[k]``, what the model says.
        width: ``[k]``, standard deviations of the prior: of the logarithm where ``log``.
        log: ``[k]`` bool.
        floor: ``[k]``, least value; -inf where there is none.
        write: puts values ``[k]`` into a model.
        constants: ``mj_setConst`` has to run afterwards.
    """

    quantity: str
    thing: str
    names: tuple[str, ...]
    unit: tuple[str, ...]
    nominal: np.ndarray
    width: np.ndarray
    log: np.ndarray
    floor: np.ndarray
    write: Callable[[mujoco.MjModel, np.ndarray], None] = lambda model, value: None
    constants: bool = False


@dataclass
class Unknowns:
    """All blocks of an identification, as one vector ``z [n]``."""

    blocks: list[Block]
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.names = tuple(name for b in self.blocks for name in b.names)
        self.nominal = np.concatenate([b.nominal for b in self.blocks])
        self.width = np.concatenate([b.width for b in self.blocks])
        self.log = np.concatenate([b.log for b in self.blocks])
        self.floor = np.concatenate([b.floor for b in self.blocks])
        self.unit = tuple(u for b in self.blocks for u in b.unit)
        reach = np.full(len(self.names), _REACH)
        floor = np.where(self.log | ~np.isfinite(self.floor), -_REACH, (self.floor - self.nominal) / self.width)
        self.low, self.high = np.maximum(-reach, floor), np.where(floor > -_REACH, 3 * _REACH, _REACH)
        self.start = np.where(self.low >= 0, 0.5, 0.0)  # a start at a bound stays there

    def values(self, z: np.ndarray) -> np.ndarray:
        """Physical values of ``z [..., n]``."""
        shift = self.width * z
        return np.where(self.log, self.nominal * np.exp(np.where(self.log, shift, 0.0)), self.nominal + shift)

    def slopes(self, z: np.ndarray) -> np.ndarray:
        """Derivative of the values with respect to ``z [n]``."""
        return self.width * np.where(self.log, np.abs(self.values(z)), 1.0)

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """``z [n]`` of physical values: inverse of :meth:`values`."""
        factor = np.where(self.log, values / np.where(self.log, self.nominal, 1.0), 1.0)
        return np.where(self.log, np.log(factor), values - self.nominal) / self.width

    def write(self, model: mujoco.MjModel, data: mujoco.MjData, z: np.ndarray) -> None:
        """Put the values of ``z [n]`` into a model; ``data`` is scratch."""
        values, at = self.values(z), 0
        for b in self.blocks:
            b.write(model, values[at : at + len(b.names)])
            at += len(b.names)
        if any(b.constants for b in self.blocks):
            mujoco.mj_setConst(model, data)

    def delay(self, name: str, z: np.ndarray) -> float:
        """Value of one of :data:`DELAYS` [s]; 0 if it is not identified."""
        return float(self.values(z)[self.names.index(name)]) if name in self.names else 0.0


def choose(
    fit: Sequence[str], model: mujoco.MjModel, robot: RobotModel, widths: dict[str, float] | None = None
) -> Unknowns:
    """The unknowns that ``fit`` asks for: a quantity for all of the arm, or ``quantity:pattern`` of names.

    Args:
        fit: such as ``["damping", "friction_loss", "mass:hand", "actuator_delay"]``.
        model: of the robot alone.
        robot: what it is.
        widths: of priors, where not those of :data:`DEFAULT_WIDTHS`.

    Raises:
        ConfigError: an unknown quantity or name, or the same thing twice.
    """
    for quantity, width in (widths or {}).items():
        if quantity not in FITTABLE:
            raise ConfigError(f"prior.{quantity}: unknown quantity. {nearest(quantity, FITTABLE)}")
        if not width > 0:
            raise ConfigError(f"prior.{quantity}={width}: expected a standard deviation, more than 0")
    blocks: list[Block] = []
    for word in fit:
        quantity, _, pattern = word.partition(":")
        if quantity not in FITTABLE:
            raise ConfigError(f"fit: unknown quantity {quantity!r}. {nearest(quantity, FITTABLE)}")
        blocks += _blocks(quantity, pattern, model, robot, widths or {})
    if not blocks:
        raise ConfigError(f"fit is empty: expected some of {', '.join(FITTABLE)}")
    names = [name for b in blocks for name in b.names]
    if set(DELAYS) <= set(names):
        raise ConfigError(f"fit: {' and '.join(DELAYS)}: the motion shows only their sum; take one of both")
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ConfigError(f"fit: {twice[0]} is asked for twice")
    whole = {b.thing for b in blocks if b.quantity == "inertia"}
    if both := [b.names[0] for b in blocks if b.quantity in ("mass", "center_of_mass") and b.thing in whole]:
        raise ConfigError(f"fit: {both[0]} is a part of inertia/{both[0].split('/')[1]}: take one of both")
    return Unknowns(blocks)


def _blocks(quantity: str, pattern: str, m: mujoco.MjModel, robot: RobotModel, widths: dict[str, float]) -> list[Block]:
    width = widths.get(quantity, DEFAULT_WIDTHS[quantity])
    if quantity in DELAYS:
        if pattern:
            raise ConfigError(f"fit: {quantity}:{pattern}: it is one number for the whole arm; expected {quantity}")
        one = np.ones(1)
        return [
            Block(
                quantity=quantity, thing="arm", names=(quantity,), unit=("s",), nominal=0 * one, width=width * one,
                log=one < 0, floor=0 * one,
            )
        ]  # fmt: skip
    kind = "body" if quantity == "inertia" else QUANTITIES[quantity].kind
    things = _things(quantity, kind, pattern, m, robot)
    if quantity == "inertia":
        return [_inertia(m, name, width) for name in things]
    if quantity == "center_of_mass":
        return [_centre(m, name, width) for name in things]
    return [_scalar(quantity, QUANTITIES[quantity], m, name, widths) for name in things]


def _things(quantity: str, kind: str, pattern: str, m: mujoco.MjModel, robot: RobotModel) -> list[str]:
    """Names that a word of ``fit`` means."""
    if kind == "body":
        arm = [m.body(int(m.jnt_bodyid[m.joint(j).id])).name for j in robot.joints]
        every = [n for i, n in enumerate(names_of(m, "body")) if i and n and m.body_mass[i] > 0]
        every = [n for n in every if _moves(m, m.body(n).id, {m.body(a).id for a in arm})]
    else:
        every = list(robot.joints if kind == "joint" else robot.actuators)
    chosen = [n for n in every if not pattern or fnmatchcase(n, pattern)]
    if not chosen:
        raise ConfigError(
            f"fit: {quantity}:{pattern}: the arm has no moving {kind} of that name. {nearest(pattern, every)}"
        )
    return chosen


def _moves(m: mujoco.MjModel, body: int, arm: set[int]) -> bool:
    while body:
        if body in arm:
            return True
        body = int(m.body_parentid[body])
    return False


def _scalar(quantity: str, q: Quantity, m: mujoco.MjModel, name: str, widths: dict[str, float]) -> Block:
    index = int(m.jnt_dofadr[m.joint(name).id]) if q.kind == "joint" else int(getattr(m, q.kind)(name).id)
    if quantity == "force_limit" and not m.actuator_forcelimited[index]:
        raise ConfigError(f"fit: force_limit:{name} has none; expected actuators with a force limit")
    parts = [(fieldname, index if part is None else (index, part)) for fieldname, part in (q.main, *q.follow)]
    nominals = [np.array(getattr(m, f)[at], np.float64) for f, at in parts]
    nominal = float(nominals[0])
    if nominal == 0 and quantity not in SHARES:
        raise ConfigError(f"fit: {quantity}:{name} is 0 in the model, so that there is no factor to identify")
    if nominal == 0:
        width = widths.get(quantity, SHARES[quantity]) * _size(quantity, m, index)
    else:
        width = widths.get(quantity, DEFAULT_WIDTHS[quantity])

    def write(model: mujoco.MjModel, value: np.ndarray) -> None:
        for (fieldname, at), before in zip(parts, nominals, strict=True):
            getattr(model, fieldname)[at] = value[0] if nominal == 0 else before * (value[0] / nominal)

    one = np.ones(1)
    return Block(
        quantity=quantity, thing=name, names=(f"{quantity}/{name}",), unit=(_unit(q, m, name),), nominal=nominal * one,
        width=width * one, log=np.array([nominal != 0]), floor=0 * one, write=write, constants=q.constants,
    )  # fmt: skip


def _unit(q: Quantity, m: mujoco.MjModel, name: str) -> str:
    """Of a hinge or a slide, where the quantity has both."""
    slide, _, hinge = q.unit.partition(" or ")
    turns = q.kind == "joint" and m.jnt_type[m.joint(name).id] == mujoco.mjtJoint.mjJNT_HINGE.value
    return hinge if hinge and (turns or q.kind == "actuator") else slide


def _size(quantity: str, m: mujoco.MjModel, dof: int) -> float:
    """What a quantity that is 0 in the model is measured against: the joint's force limit, or its inertia."""
    if quantity == "armature":
        return float(m.dof_M0[dof])
    joint = int(m.dof_jntid[dof])
    limits = [
        float(m.actuator_forcerange[a, 1])
        for a in range(m.nu)
        if m.actuator_trnid[a, 0] == joint and m.actuator_forcelimited[a]
    ]
    return max(limits, default=0.0) or max(100.0 * float(m.dof_M0[dof]), 1.0)


def _centre(m: mujoco.MjModel, name: str, width: float) -> Block:
    body = int(m.body(name).id)

    def write(model: mujoco.MjModel, value: np.ndarray) -> None:
        model.body_ipos[body] = value

    return Block(
        quantity="center_of_mass", thing=name, names=tuple(f"center_of_mass/{name}/{a}" for a in "xyz"),
        unit=("m",) * 3, nominal=np.array(m.body_ipos[body]), width=np.full(3, width), log=np.zeros(3, bool),
        floor=np.full(3, -np.inf), write=write, constants=True,
    )  # fmt: skip


def _inertia(m: mujoco.MjModel, name: str, width: float) -> Block:
    """Mass, centre, and stretch and shear of how the mass lies about the centre: ten numbers."""
    body = int(m.body(name).id)
    mass, centre = float(m.body_mass[body]), np.array(m.body_ipos[body])
    turn = quat_to_matrix(np.array(m.body_iquat[body]))
    inertia = turn @ np.diag(m.body_inertia[body]) @ turn.T
    moment = 0.5 * np.trace(inertia) * np.eye(3) - inertia

    def write(model: mujoco.MjModel, value: np.ndarray) -> None:
        shape = np.diag(value[4:7])
        shape[0, 1], shape[1, 2], shape[0, 2] = value[7:]
        new = value[0] / mass * shape @ moment @ shape.T
        principal, axes = np.linalg.eigh(np.trace(new) * np.eye(3) - new)
        axes *= np.sign(np.linalg.det(axes))
        model.body_mass[body], model.body_ipos[body], model.body_inertia[body] = value[0], value[1:4], principal
        quat = np.zeros(4)
        mujoco.mju_mat2Quat(quat, axes.ravel())
        model.body_iquat[body] = quat

    parts = ("mass", "x", "y", "z", "stretch_x", "stretch_y", "stretch_z", "shear_xy", "shear_yz", "shear_xz")
    log = np.array([True, *[False] * 3, *[True] * 3, *[False] * 3])
    return Block(
        quantity="inertia", thing=name, names=tuple(f"inertia/{name}/{p}" for p in parts),
        unit=("kg", "m", "m", "m", *("",) * 6), nominal=np.array([mass, *centre, 1, 1, 1, 0, 0, 0], np.float64),
        width=np.array([width, *[DEFAULT_WIDTHS["center_of_mass"]] * 3, *[width] * 6]), log=log,
        floor=np.full(10, -np.inf), write=write, constants=True,
    )  # fmt: skip
