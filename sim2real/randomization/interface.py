"""Settings of the terms of actuation, sensing and cameras, and the events that they become."""

from __future__ import annotations

from dataclasses import dataclass

from visuomotor.data.errors import ConfigError
from visuomotor.envs.sim.events import Event
from visuomotor.sim2real.randomization.actuation import ActionError, CommandDropout, ControlDelay, EncoderOffset
from visuomotor.sim2real.randomization.config import TermConfig
from visuomotor.sim2real.randomization.drawn import Drawing
from visuomotor.sim2real.randomization.lights import CameraRotation, LightTemperature, LightTemperatureConfig
from visuomotor.sim2real.randomization.pixels import CameraFault
from visuomotor.sim2real.randomization.sensing import (
    ObservationDelay,
    ObservationDropout,
    ObservationError,
    PoseError,
)

__all__ = [
    "FAULT_CONFIGS",
    "AddedConfig",
    "JPEGConfig",
    "PoseErrorConfig",
    "ScaledConfig",
    "TemperatureConfig",
    "action_error",
    "camera_fault",
    "camera_rotation",
    "command_dropout",
    "control_delay",
    "encoder_offset",
    "light_temperature",
    "observation_delay",
    "observation_dropout",
    "observation_error",
    "pose_error",
]


@dataclass(kw_only=True, slots=True)
class AddedConfig(TermConfig):
    """A number that is added; 0 changes nothing."""

    operation: str = "+"
    low: float = 0.0
    high: float = 0.0


@dataclass(kw_only=True, slots=True)
class ScaledConfig(TermConfig):
    """A factor; 1 changes nothing."""


@dataclass(kw_only=True, slots=True)
class PoseErrorConfig(AddedConfig):
    """A wrong estimate of where objects are; ``high`` is the standard deviation of each coordinate [m].

    Attributes:
        angle: standard deviation of the turn about each axis [rad] for each metre of that.
        each_step: drawn anew in each step, instead of once an episode.
    """

    angle: float = 0.0
    each_step: bool = False


@dataclass(kw_only=True, slots=True)
class TemperatureConfig(TermConfig):
    """Colour temperature of a light that the camera is not balanced for [K]; 6500 changes nothing."""

    operation: str = "="
    low: float = 6500.0
    high: float = 6500.0


@dataclass(kw_only=True, slots=True)
class JPEGConfig(TermConfig):
    """Quality of JPEG, 1 to 100."""

    operation: str = "="
    low: float = 90.0
    high: float = 100.0


FAULT_CONFIGS: dict[str, type[TermConfig]] = {
    "exposure": AddedConfig, "temperature": TemperatureConfig, "contrast": ScaledConfig, "saturation": ScaledConfig,
    "hue": AddedConfig, "blur": AddedConfig, "noise": AddedConfig, "jpeg": JPEGConfig,
}  # fmt: skip
"""Settings of each fault of cameras."""


def _without_names(config: TermConfig, term: str) -> None:
    if config.names:
        raise ConfigError(f"{term}: names={config.names}; expected none: it is of whole commands")


def _how(config: TermConfig) -> Drawing:
    return Drawing(spread=config.spread(), shared=config.shared, optional=config.optional, when=config.when)


def observation_error(kind: str, config: TermConfig) -> Event:
    """:class:`~visuomotor.sim2real.randomization.sensing.ObservationError`."""
    return ObservationError(kind, config.names, _how(config))


def observation_delay(config: AddedConfig) -> Event:
    """:class:`~visuomotor.sim2real.randomization.sensing.ObservationDelay`."""
    return ObservationDelay(config.names, _how(config))


def observation_dropout(config: AddedConfig) -> Event:
    """:class:`~visuomotor.sim2real.randomization.sensing.ObservationDropout`."""
    return ObservationDropout(config.names, _how(config))


def pose_error(config: PoseErrorConfig) -> Event:
    """:class:`~visuomotor.sim2real.randomization.sensing.PoseError`."""
    return PoseError(config.names, _how(config), angle=config.angle, each_step=config.each_step)


def action_error(kind: str, config: TermConfig) -> Event:
    """:class:`~visuomotor.sim2real.randomization.actuation.ActionError`."""
    return ActionError(kind, config.names, _how(config))


def control_delay(config: AddedConfig, *, jitter: bool) -> Event:
    """:class:`~visuomotor.sim2real.randomization.actuation.ControlDelay`."""
    _without_names(config, "control_jitter" if jitter else "control_delay")
    return ControlDelay(_how(config), jitter=jitter)


def command_dropout(config: AddedConfig) -> Event:
    """:class:`~visuomotor.sim2real.randomization.actuation.CommandDropout`."""
    _without_names(config, "command_dropout")
    return CommandDropout(_how(config))


def encoder_offset(config: AddedConfig) -> Event:
    """:class:`~visuomotor.sim2real.randomization.actuation.EncoderOffset`."""
    return EncoderOffset(config.names, _how(config))


def camera_fault(kind: str, config: TermConfig) -> Event:
    """:class:`~visuomotor.sim2real.randomization.pixels.CameraFault`."""
    return CameraFault(kind, config.names, _how(config))


def camera_rotation(config: AddedConfig) -> Event:
    """:class:`~visuomotor.sim2real.randomization.lights.CameraRotation`."""
    return CameraRotation(config.names, _how(config))


def light_temperature(config: LightTemperatureConfig) -> Event:
    """:class:`~visuomotor.sim2real.randomization.lights.LightTemperature`."""
    return LightTemperature(config.names, _how(config))
