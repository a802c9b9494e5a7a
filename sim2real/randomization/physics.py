"""Settings of the terms that change physics, and the events that they become."""

from __future__ import annotations

from dataclasses import dataclass, field

from visuomotor.data.errors import ConfigError
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.terms import JointOffset, ModelTerm, Push
from visuomotor.sim2real.randomization.config import TermConfig
from visuomotor.sim2real.randomization.object_size import ObjectSize
from visuomotor.sim2real.randomization.pseudo_inertia import PARTS, PseudoInertia
from visuomotor.sim2real.randomization.shape import Shape

__all__ = [
    "JointOffsetConfig",
    "ObjectSizeConfig",
    "PseudoInertiaConfig",
    "PushConfig",
    "ShapeConfig",
    "joint_offset",
    "model_term",
    "object_size",
    "pseudo_inertia",
    "push",
    "shape",
]


@dataclass(kw_only=True, slots=True)
class JointOffsetConfig(TermConfig):
    """Episodes begin with joints away from where the task puts them, within their limits [rad or m]."""

    operation: str = "+"
    low: float = 0.0
    high: float = 0.0


@dataclass(kw_only=True, slots=True)
class PseudoInertiaConfig(TermConfig):
    """Mass, centre and inertia of bodies perturbed together; the numbers are shares, and 0 changes nothing.

    Attributes:
        parts: of ``scale`` (the mass changes by exp(2 x)), ``stretch`` (axes by exp(x)), ``shear`` and ``shift`` (the
            centre, in radii of gyration).
    """

    operation: str = "+"
    low: float = 0.0
    high: float = 0.0
    parts: list[str] = field(default_factory=lambda: list(PARTS))


@dataclass(kw_only=True, slots=True)
class ObjectSizeConfig(TermConfig):
    """Bodies scaled with their geoms.

    Attributes:
        density: the mass grows with the volume; otherwise it stays.
    """

    density: bool = True


@dataclass(kw_only=True, slots=True)
class ShapeConfig(TermConfig):
    """Bodies of one primitive geom that are of several shapes, all equally likely.

    Attributes:
        shapes: of box, sphere, cylinder, capsule and ellipsoid; the one that the bodies have is among them.
    """

    operation: str = "="
    shapes: list[str] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class PushConfig(TermConfig):
    """Sudden changes of velocity of a free body, as if it were hit.

    Attributes:
        angular: largest change of the angular velocity about each axis [rad/s]; ``high`` is that of the linear one in
            each direction [m/s].
    """

    operation: str = "+"
    low: float = 0.0
    high: float = 0.0
    when: str = "interval"
    interval: list[float] = field(default_factory=lambda: [0.5, 2.0])
    angular: float = 0.0


def model_term(quantity: str, config: TermConfig) -> Event:
    """A quantity of :data:`~visuomotor.envs.sim.quantities.QUANTITIES`."""
    return ModelTerm(
        quantity, config.names, config.spread(), shared=config.shared, optional=config.optional, when=config.when
    )


def joint_offset(config: JointOffsetConfig) -> Event:
    """:class:`~visuomotor.envs.sim.terms.JointOffset`."""
    return JointOffset(config.names, config.spread(), optional=config.optional)


def pseudo_inertia(config: PseudoInertiaConfig) -> Event:
    """:class:`~visuomotor.sim2real.randomization.pseudo_inertia.PseudoInertia`."""
    return PseudoInertia(
        config.names, config.spread(), parts=config.parts, shared=config.shared, optional=config.optional,
        when=config.when,
    )  # fmt: skip


def object_size(config: ObjectSizeConfig) -> Event:
    """:class:`~visuomotor.sim2real.randomization.object_size.ObjectSize`."""
    return ObjectSize(
        config.names, config.spread(), density=config.density, shared=config.shared, optional=config.optional
    )


def shape(config: ShapeConfig) -> Event:
    """:class:`~visuomotor.sim2real.randomization.shape.Shape`."""
    return Shape(config.names, config.shapes, optional=config.optional, when=config.when)


def push(config: PushConfig) -> Event:
    """:class:`~visuomotor.envs.sim.terms.Push`."""
    if config.low or config.distribution != "uniform" or config.operation != "+" or config.when != "interval":
        raise ConfigError("push: only high, angular and interval can be set: it comes uniformly from all sides")
    return Push(
        config.names, linear=config.high, angular=config.angular, interval=(config.interval[0], config.interval[1]),
        optional=config.optional,
    )  # fmt: skip
