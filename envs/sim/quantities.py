"""Physical quantities that can differ from world to world, and the model fields that belong to each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["QUANTITIES", "Part", "Quantity"]

Part = tuple[str, slice | int | None]  # a field, and columns of its last axis; None: it has none


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A quantity of named things.

    Attributes:
        kind: ``body``, ``geom``, ``joint`` (hinges and slides, by degree of freedom), ``actuator``, ``sensor``,
            ``camera``, ``light``, ``material`` or ``option`` (of the whole world).
        main: what the drawn number acts on. A slice of columns has one number for all of them, unless ``vector``.
        vector: each of the columns has a number of its own.
        follow: fields that are scaled by the same factor as the main one.
        operations: that make sense for it.
        above, below: every value must lie between them.
        least: every value must be this or more.
        clamp: values are kept within these two.
        constants: :meth:`Simulator.set_const` has to run afterwards.
        per_joint: of joints: the field has a row a joint, not one a degree of freedom.
        flag: a field of the model that says which things have the quantity at all.
        stored: what the model holds for a value, where that is something else.
        unit: of the value.
    """

    kind: str
    main: Part
    vector: bool = False
    follow: tuple[Part, ...] = ()
    operations: str = "*+="
    above: float = -math.inf
    below: float = math.inf
    least: float = -math.inf
    clamp: tuple[float, float] | None = None
    constants: bool = False
    per_joint: bool = False
    flag: str | None = None
    stored: Callable[[Tensor], Tensor] | None = None
    unit: str = ""


def _damping_ratio(restitution: Tensor) -> Tensor:
    """Damping ratio of a contact that gives back this share of the speed: ``e = exp(-pi z / sqrt(1 - z^2))``."""
    log = torch.log(restitution)
    return -log / (math.pi**2 + log**2).sqrt()


_XYZ, _RGB, _ALL = slice(0, 3), slice(0, 3), slice(None)
_TORQUE = "N or N m"
QUANTITIES: dict[str, Quantity] = {
    # bodies
    "mass": Quantity(
        kind="body", main=("body_mass", None), follow=(("body_inertia", _ALL),), above=0, constants=True, unit="kg"
    ),
    "center_of_mass": Quantity(kind="body", main=("body_ipos", _XYZ), vector=True, constants=True, unit="m"),
    "body_position": Quantity(kind="body", main=("body_pos", _XYZ), vector=True, constants=True, unit="m"),
    "gravity_compensation": Quantity(kind="body", main=("body_gravcomp", None), constants=True),
    # contacts
    "friction": Quantity(kind="geom", main=("geom_friction", 0), above=0),
    "torsional_friction": Quantity(kind="geom", main=("geom_friction", 1), above=0, unit="m"),
    "rolling_friction": Quantity(kind="geom", main=("geom_friction", 2), above=0, unit="m"),
    "contact_time": Quantity(kind="geom", main=("geom_solref", 0), above=0, unit="s"),
    "contact_damping": Quantity(kind="geom", main=("geom_solref", 1), above=0),
    "restitution": Quantity(
        kind="geom", main=("geom_solref", 1), operations="=", above=0, below=1, stored=_damping_ratio
    ),
    "contact_impedance": Quantity(kind="geom", main=("geom_solimp", slice(0, 2)), above=0, below=1),
    "contact_width": Quantity(kind="geom", main=("geom_solimp", 2), above=0, unit="m"),
    # geometry
    "geom_size": Quantity(kind="geom", main=("geom_size", _ALL), operations="*", above=0, constants=True, unit="m"),
    "geom_position": Quantity(kind="geom", main=("geom_pos", _XYZ), vector=True, constants=True, unit="m"),
    # joints
    "damping": Quantity(kind="joint", main=("dof_damping", None), least=0, unit="N s/m or N m s/rad"),
    "friction_loss": Quantity(kind="joint", main=("dof_frictionloss", None), least=0, unit=_TORQUE),
    "armature": Quantity(kind="joint", main=("dof_armature", None), least=0, constants=True, unit="kg or kg m^2"),
    "stiffness": Quantity(
        kind="joint", main=("jnt_stiffness", None), least=0, per_joint=True, unit="N/m or N m/rad"
    ),
    # actuators and sensors
    "position_gain": Quantity(kind="actuator", main=("actuator_gainprm", 0), follow=(("actuator_biasprm", 1),)),
    "velocity_gain": Quantity(kind="actuator", main=("actuator_biasprm", 2)),
    "force_limit": Quantity(
        kind="actuator", main=("actuator_forcerange", 1), follow=(("actuator_forcerange", 0),), least=0,
        flag="actuator_forcelimited", unit=_TORQUE,
    ),
    "gear": Quantity(kind="actuator", main=("actuator_gear", 0), constants=True),
    "actuator_delay": Quantity(kind="actuator", main=("actuator_delay", None), least=0, unit="s"),
    "sensor_delay": Quantity(kind="sensor", main=("sensor_delay", None), least=0, unit="s"),
    # the world
    "gravity": Quantity(kind="option", main=("opt.gravity", _XYZ), vector=True, unit="m/s^2"),
    # what cameras see
    "camera_position": Quantity(kind="camera", main=("cam_pos", _XYZ), vector=True, constants=True, unit="m"),
    "camera_angle": Quantity(kind="camera", main=("cam_fovy", None), above=0, below=180, unit="deg"),
    "light_position": Quantity(kind="light", main=("light_pos", _XYZ), vector=True, constants=True, unit="m"),
    "light_direction": Quantity(kind="light", main=("light_dir", _XYZ), vector=True, constants=True),
    "light_diffuse": Quantity(kind="light", main=("light_diffuse", _RGB), least=0),
    "light_ambient": Quantity(kind="light", main=("light_ambient", _RGB), least=0),
    "light_specular": Quantity(kind="light", main=("light_specular", _RGB), least=0),
    "geom_color": Quantity(kind="geom", main=("geom_rgba", _RGB), vector=True, clamp=(0.0, 1.0)),
    "material_color": Quantity(kind="material", main=("mat_rgba", _RGB), vector=True, clamp=(0.0, 1.0)),
    "texture_repeat": Quantity(kind="material", main=("mat_texrepeat", _ALL), operations="*", above=0),
}  # fmt: skip
"""What a :class:`~visuomotor.envs.sim.terms.ModelTerm` can vary.

``velocity_gain`` is negative in MuJoCo's bias term: multiply it. ``restitution`` is the share of its speed that a thing
gives back after an impact; it sets the damping ratio of the geom's contacts (give it to both geoms of a contact, or to
one of higher priority, since MuJoCo mixes them). ``geom_size`` leaves mass and inertia as they are.
"""
