"""Lights: how many there are, where, how bright and of which colour; and cameras that look another way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import axis_angle_to_quat, quat_multiply
from visuomotor.data.transforms.camera import kelvin_to_rgb
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.naming import matching
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection, constant
from visuomotor.envs.sim.spread import Source
from visuomotor.envs.sim.world import World
from visuomotor.envs.sim.written import Written
from visuomotor.sim2real.randomization.config import TermConfig
from visuomotor.sim2real.randomization.drawn import Drawing, Drawn

__all__ = ["CameraRotation", "ExtraLights", "ExtraLightsConfig", "LightTemperature", "LightTemperatureConfig"]

_LUMINANCE = (0.2126, 0.7152, 0.0722)  # of linear sRGB (IEC 61966-2-1)


@dataclass(kw_only=True, slots=True)
class LightTemperatureConfig(TermConfig):
    """Colour temperature of lights [K]; their luminance stays."""

    operation: str = "="
    low: float = 2700.0
    high: float = 7500.0


@dataclass(kw_only=True, slots=True)
class ExtraLightsConfig(TermConfig):
    """More lights, some of which are on; ``low`` to ``high`` is the brightness of each.

    Attributes:
        count: that are added to the scene.
        share: of them that are on, on average.
        distance: from the middle of the scene, shortest and longest [m].
        center: the middle of the scene [m]: where they shine to.
        temperature: of their colours, lowest and highest [K].
    """

    operation: str = "+"
    low: float = 0.0
    high: float = 0.4
    count: int = 2
    share: float = 0.5
    distance: tuple[float, float] = (1.0, 3.0)
    center: tuple[float, float, float] = (0.5, 0.0, 0.0)
    temperature: tuple[float, float] = (2700.0, 7500.0)

    def __post_init__(self) -> None:
        TermConfig.__post_init__(self)
        if self.count < 1 or not 0 <= self.share <= 1:
            raise ConfigError(f"count={self.count} and share={self.share}: expected 1 or more, and 0 to 1")
        for name in ("distance", "temperature"):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise ConfigError(f"{name}={list(pair)}: expected two numbers above 0, the smaller first")


class LightTemperature(Drawn):
    """Gives lights the colour of a black body, at the luminance that they have.

    Args:
        names: patterns of lights.
        how: the temperature [K] is drawn, with the operation ``=``.
    """

    def __init__(self, names: Sequence[str], how: Drawing) -> None:
        super().__init__("light_temperature", names, how, operation="=", least=1667.0)

    def _find(self, world: World) -> int:
        ids = matching(world.sim.model, "light", self.names, optional=self.optional)
        index = torch.tensor(ids, dtype=torch.int64, device=world.sim.device)
        self._fields = [Written(world.sim, "light_diffuse", slice(None), index)] if ids else []
        return len(ids)

    def written(self) -> list[Written]:
        return self._fields

    def apply(self, worlds: Selection, draws: Draws) -> None:
        super().apply(worlds, draws)
        for field in self._fields:
            base = field.base(worlds)
            luminance = (base * constant(_LUMINANCE, base.device)).sum(-1, keepdim=True)
            field.put(worlds, luminance * kelvin_to_rgb(worlds.take(self._number)))


class ExtraLights(Event):
    """Adds lights to the scene that shine on its middle from anywhere above; those that are off are black.

    Args:
        config: how many, and where.
    """

    changes_constants = True

    def __init__(self, config: ExtraLightsConfig) -> None:
        if config.names:
            raise ConfigError(f"extra_lights: names={config.names}; expected none: its lights are new ones")
        if config.operation != "+" or config.low < 0:
            raise ConfigError("extra_lights: expected the operation '+', and a brightness of 0 or more")
        self.config, self.spread, self.when = config, config.spread(), config.when
        self.source: Source = self.spread

    def prepare(self, scene: mujoco.MjSpec) -> None:
        for i in range(self.config.count):
            scene.worldbody.add_light(name=f"extra_light{i}", pos=[0, 0, self.config.distance[1]], dir=[0, 0, -1],
                                      diffuse=[0, 0, 0], specular=[0, 0, 0], ambient=[0, 0, 0])  # fmt: skip

    def bind(self, world: World) -> None:
        sim = world.sim
        ids = matching(sim.model, "light", [f"extra_light{i}" for i in range(self.config.count)])
        index = torch.tensor(ids, dtype=torch.int64, device=sim.device)
        self._pos, self._dir, self._diffuse = (
            Written(sim, f"light_{name}", slice(None), index) for name in ("pos", "dir", "diffuse")
        )

    def written(self) -> list[Written]:
        return [self._pos, self._dir, self._diffuse]

    def apply(self, worlds: Selection, draws: Draws) -> None:
        c, shape = self.config, (self.config.count,)
        height, turn = draws.uniform(shape, 0.3), draws.uniform(shape, -math.pi, math.pi)  # even over the dome
        flat = (1.0 - height.square()).sqrt()
        outward = torch.stack([flat * torch.cos(turn), flat * torch.sin(turn), height], -1)
        on = draws.uniform(shape) < c.share
        light = self.source.draw(draws, shape, worlds) * on
        distance = draws.uniform(shape, *c.distance)[..., None]
        colour = kelvin_to_rgb(draws.uniform(shape, *c.temperature))
        self._pos.put(worlds, constant(tuple(c.center), outward.device) + distance * outward)
        self._dir.put(worlds, -outward)
        self._diffuse.put(worlds, light[..., None] * colour)


class CameraRotation(Drawn):
    """Turns cameras about their own axes (right, up, backward).

    Args:
        names: patterns of the scene's cameras.
        how: each of the three components of the rotation vector [rad] is drawn.
    """

    changes_constants = True

    def __init__(self, names: Sequence[str], how: Drawing) -> None:
        super().__init__("camera_rotation", names, how)

    def _find(self, world: World) -> int:
        ids = matching(world.sim.model, "camera", self.names, optional=self.optional)
        index = torch.tensor(ids, dtype=torch.int64, device=world.sim.device)
        self._fields = [Written(world.sim, "cam_quat", slice(None), index)] if ids else []
        return 3 * len(ids)

    def written(self) -> list[Written]:
        return self._fields

    def apply(self, worlds: Selection, draws: Draws) -> None:
        super().apply(worlds, draws)
        for field in self._fields:
            turn = worlds.take(self._number).expand(-1, 3 * len(field.nominal)).reshape(worlds.n, -1, 3)
            quat = axis_angle_to_quat(turn.to(field.nominal.dtype))
            new = quat_multiply(field.base(worlds).expand_as(quat), quat)
            field.put(worlds, new)
