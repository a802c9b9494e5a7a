"""Randomisation terms by name: what settings choose from, and what other packages add to.

Another package adds a term by an entry point of the group ``visuomotor.randomization`` whose name is the term's and
whose object is a :class:`TermEntry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.quantities import QUANTITIES
from visuomotor.sim2real.randomization.actuation import ERRORS as ACTION_ERRORS
from visuomotor.sim2real.randomization.config import TermConfig
from visuomotor.sim2real.randomization.interface import (
    FAULT_CONFIGS,
    AddedConfig,
    PoseErrorConfig,
    ScaledConfig,
    action_error,
    camera_fault,
    camera_rotation,
    command_dropout,
    control_delay,
    encoder_offset,
    light_temperature,
    observation_delay,
    observation_dropout,
    observation_error,
    pose_error,
)
from visuomotor.sim2real.randomization.lights import ExtraLights, ExtraLightsConfig, LightTemperatureConfig
from visuomotor.sim2real.randomization.physics import (
    JointOffsetConfig,
    ObjectSizeConfig,
    PseudoInertiaConfig,
    PushConfig,
    ShapeConfig,
    joint_offset,
    model_term,
    object_size,
    pseudo_inertia,
    push,
    shape,
)
from visuomotor.sim2real.randomization.scenery import (
    Backdrop,
    BackdropConfig,
    Distractors,
    DistractorsConfig,
    Texture,
    TextureConfig,
)
from visuomotor.sim2real.randomization.sensing import ERRORS as OBSERVATION_ERRORS

__all__ = ["TermEntry", "get_term", "terms"]

_GROUP = "visuomotor.randomization"


@dataclass(frozen=True)
class TermEntry:
    """A term's settings (:class:`TermConfig` or a class derived from it), and what makes an event of them.

    An event whose numbers a curriculum may govern has the attributes ``spread`` and ``source`` (see
    :class:`~visuomotor.envs.sim.spread.Source`).
    """

    config_class: type[TermConfig]
    build: Callable[[Any], Event]


_OF: dict[str, type[TermConfig]] = {"+": AddedConfig, "*": ScaledConfig}
_TERMS: dict[str, TermEntry] = {
    **{name: TermEntry(TermConfig, partial(model_term, name)) for name in QUANTITIES},
    **{f"action_{k}": TermEntry(_OF[op], partial(action_error, k)) for k, op in ACTION_ERRORS.items()},
    **{f"observation_{k}": TermEntry(_OF[op], partial(observation_error, k)) for k, op in OBSERVATION_ERRORS.items()},
    **{f"camera_{k}": TermEntry(FAULT_CONFIGS[k], partial(camera_fault, k)) for k in FAULT_CONFIGS},
    "backdrop": TermEntry(BackdropConfig, Backdrop),
    "camera_rotation": TermEntry(AddedConfig, camera_rotation),
    "command_dropout": TermEntry(AddedConfig, command_dropout),
    "control_delay": TermEntry(AddedConfig, partial(control_delay, jitter=False)),
    "control_jitter": TermEntry(AddedConfig, partial(control_delay, jitter=True)),
    "distractors": TermEntry(DistractorsConfig, Distractors),
    "encoder_offset": TermEntry(AddedConfig, encoder_offset),
    "extra_lights": TermEntry(ExtraLightsConfig, ExtraLights),
    "joint_offset": TermEntry(JointOffsetConfig, joint_offset),
    "light_temperature": TermEntry(LightTemperatureConfig, light_temperature),
    "object_size": TermEntry(ObjectSizeConfig, object_size),
    "observation_delay": TermEntry(AddedConfig, observation_delay),
    "observation_dropout": TermEntry(AddedConfig, observation_dropout),
    "pose_error": TermEntry(PoseErrorConfig, pose_error),
    "pseudo_inertia": TermEntry(PseudoInertiaConfig, pseudo_inertia),
    "push": TermEntry(PushConfig, push),
    "shape": TermEntry(ShapeConfig, shape),
    "texture": TermEntry(TextureConfig, Texture),
}


@cache
def terms() -> Mapping[str, TermEntry]:
    """Every term, those of other packages included.

    Raises:
        ConfigError: an entry point that cannot be loaded, is no entry, or has a name that is taken.
    """
    known = dict(_TERMS)
    for point in entry_points(group=_GROUP):
        where = f"the entry point {point.name!r} of group {_GROUP} ({point.value})"
        try:
            entry = point.load()
        except Exception as e:  # whatever a module of another package does when it is imported
            raise ConfigError(f"{where} cannot be loaded: {type(e).__name__}: {e}") from e
        if not isinstance(entry, TermEntry):
            raise ConfigError(f"{where} is {entry!r}; expected a TermEntry")
        if point.name in known:
            raise ConfigError(f"{where} has a name that is taken")
        known[point.name] = entry
    return known


def get_term(name: str) -> TermEntry:
    """The term of that name. Raises ConfigError with the nearest names for an unknown one."""
    if name not in terms():
        raise ConfigError(f"unknown term {name!r}. {nearest(name, terms())}")
    return terms()[name]
