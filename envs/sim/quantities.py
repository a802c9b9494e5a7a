"""Physical quantities that can differ from world to world, and the model fields that belong to each."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QUANTITIES", "Part", "Quantity"]

# What sets a quantity: (field, columns of its last axis or None, how the value enters).
Part = tuple[str, slice | int | None]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A physical quantity of named things.

    Attributes:
        kind: ``body``, ``geom``, ``joint`` (hinges and slides, by degree of freedom), ``actuator`` or ``option``.
        main: the field that the drawn number acts on.
        follow: fields that are scaled by the same factor as the main one.
        positive: the value must stay above 0.
        never_negative: the value must stay at 0 or above.
        constants: :meth:`Simulator.set_const` has to run afterwards.
        unit: of the value.
    """

    kind: str
    main: Part
    follow: tuple[Part, ...] = ()
    positive: bool = False
    never_negative: bool = False
    constants: bool = False
    unit: str = ""


QUANTITIES: dict[str, Quantity] = {
    "mass": Quantity(
        kind="body", main=("body_mass", None), follow=(("body_inertia", slice(None)),), positive=True, constants=True,
        unit="kg",
    ),
    "center_of_mass": Quantity(kind="body", main=("body_ipos", slice(None)), constants=True, unit="m"),
    "friction": Quantity(kind="geom", main=("geom_friction", 0), positive=True),
    "contact_time": Quantity(kind="geom", main=("geom_solref", 0), positive=True, unit="s"),
    "damping": Quantity(kind="joint", main=("dof_damping", None), never_negative=True, unit="N s/m or N m s/rad"),
    "friction_loss": Quantity(kind="joint", main=("dof_frictionloss", None), never_negative=True, unit="N or N m"),
    "armature": Quantity(
        kind="joint", main=("dof_armature", None), never_negative=True, constants=True, unit="kg or kg m^2"
    ),
    "position_gain": Quantity(kind="actuator", main=("actuator_gainprm", 0), follow=(("actuator_biasprm", 1),)),
    "velocity_gain": Quantity(kind="actuator", main=("actuator_biasprm", 2)),
    "force_limit": Quantity(
        kind="actuator", main=("actuator_forcerange", 1), follow=(("actuator_forcerange", 0),), never_negative=True,
        unit="N or N m",
    ),
    "actuator_delay": Quantity(kind="actuator", main=("actuator_delay", None), never_negative=True, unit="s"),
    "gravity": Quantity(kind="option", main=("opt.gravity", slice(None)), unit="m/s^2"),
}  # fmt: skip
"""What a :class:`ModelTerm` can vary. ``velocity_gain`` is negative in MuJoCo's bias term: multiply it."""
