"""What stands around: textures of tables and other materials, a background, and objects that do not matter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase

import mujoco
import numpy as np
import torch

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.transforms.textures import cell_counts, load_textures, noise_textures
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.naming import labels, matching
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.spread import Source, Spread
from visuomotor.envs.sim.world import World, find
from visuomotor.envs.sim.written import Written
from visuomotor.sim2real.randomization.config import TermConfig

__all__ = ["Backdrop", "BackdropConfig", "Distractors", "DistractorsConfig", "Texture", "TextureConfig"]

_RGB = mujoco.mjtTextureRole.mjTEXROLE_RGB.value
_SHAPES = (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CYLINDER,
           mujoco.mjtGeom.mjGEOM_CAPSULE)  # fmt: skip
_DOWN = (
    slice(2, 3),
    slice(0, 1),
    slice(1, 2),
    slice(0, 2),
)  # components of geom_size that add up to how far each reaches down
_GONE = -20.0  # height of what is not there [m]


@dataclass(kw_only=True, slots=True)
class TextureConfig(TermConfig):
    """Which pictures materials wear, all equally likely: ``names`` are materials.

    Attributes:
        folder: of pictures; null makes coloured noise.
        count: pictures, at most, beside the one that a material has.
        size: side of a picture [px]; larger ones are scaled down and cut.
    """

    operation: str = "="
    folder: str | None = None
    count: int = 16
    size: int = 128

    def __post_init__(self) -> None:
        TermConfig.__post_init__(self)
        if self.count < 1 or self.size < 8:
            raise ConfigError(f"count={self.count} and size={self.size}: expected at least 1, and 8 pixels")


@dataclass(kw_only=True, slots=True)
class BackdropConfig(TextureConfig):
    """Four walls around the scene that wear pictures.

    Attributes:
        distance: of each wall from the middle [m].
        height: of the walls' upper edge above the table [m]; their lower edge is as far below.
    """

    distance: float = 3.0
    height: float = 3.0


@dataclass(kw_only=True, slots=True)
class DistractorsConfig(TermConfig):
    """Objects of random shape, size, colour and place that nothing collides with; each is there in a ``share``.

    Attributes:
        count: that are added to the scene.
        share: of them that are there, on average.
        area: where they stand: x from, to, y from, to [m].
        size: half their width, smallest and largest [m].
        keep: those that come nearer than this to the middle of one of ``names`` (bodies on a free joint) are not there
            [m].
    """

    operation: str = "="
    count: int = 4
    share: float = 0.5
    area: tuple[float, float, float, float] = (0.2, 0.9, -0.6, 0.6)
    size: tuple[float, float] = (0.015, 0.05)
    keep: float = 0.12

    def __post_init__(self) -> None:
        TermConfig.__post_init__(self)
        if self.count < 1 or not 0 <= self.share <= 1:
            raise ConfigError(f"count={self.count} and share={self.share}: expected 1 or more, and 0 to 1")
        if len(self.size) != 2 or not 0 < self.size[0] <= self.size[1]:
            raise ConfigError(f"size={list(self.size)}: expected two sizes above 0, the smaller first")
        if len(self.area) != 4 or self.area[0] > self.area[1] or self.area[2] > self.area[3]:
            raise ConfigError(f"area={list(self.area)}: expected x from, x to, y from, y to")


def _pictures(config: TextureConfig, seed: int) -> np.ndarray:
    """uint8 ``[n, size, size, 3]``."""
    size = (config.size, config.size)
    if config.folder is not None:
        return load_textures(config.folder, size, config.count).permute(0, 2, 3, 1).contiguous().numpy()
    generator = torch.Generator().manual_seed(seed)
    cells = [torch.rand(config.count, 3, n, n, generator=generator) for n in cell_counts(size)]
    noise = noise_textures(cells, size)
    low, high = noise.amin((1, 2, 3), keepdim=True), noise.amax((1, 2, 3), keepdim=True)
    noise = (noise - low) / (high - low)
    return (noise * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


class Texture(Event):
    """Changes which picture a material wears.

    Args:
        config: which materials and pictures.

    Attributes:
        spread: of the number of the picture.

    Raises:
        ConfigError: a material that is not there.
        DataError: a folder without pictures.
    """

    def __init__(self, config: TextureConfig) -> None:
        self.config, self.when = config, config.when
        self._made = _pictures(config, seed=0)
        self.spread = Spread(
            operation="=", distribution="choice", values=tuple(map(float, range(len(self._made) + self._with_own)))
        )
        self.source: Source = self.spread

    _with_own = True
    _prefix = "texture"

    def prepare(self, scene: mujoco.MjSpec) -> None:
        known = [m.name for m in scene.materials]
        for p in self.config.names:
            if not self.config.optional and not any(fnmatchcase(n, p) for n in known):
                raise ConfigError(f"texture: the scene has no material {p!r}. {nearest(p, known)}")
        self._materials = [n for n in known if any(fnmatchcase(n, p) for p in self.config.names)]
        first = sum(t.name.startswith(self._prefix) for t in scene.textures)  # of other terms
        self._names = [f"{self._prefix}{first + i}" for i in range(len(self._made))] if self._materials else []
        for name, picture in zip(self._names, self._made, strict=False):
            add_texture(scene, name, picture)

    def bind(self, world: World) -> None:
        sim, m = world.sim, world.sim.model
        self._fields: list[Written] = []
        if self._materials:
            ids = [find(m, "material", n) for n in self._materials]
            index = torch.tensor(ids, dtype=torch.int64, device=sim.device)
            self._fields = [Written(sim, "mat_texid", _RGB, index)]
            table = [m.texture(n).id for n in self._names]
            own = [[int(m.mat_texid[i, _RGB])] if self._with_own else [] for i in ids]
            self._table = torch.tensor([o + table for o in own], device=sim.device)  # [materials, pictures]

    def written(self) -> list[Written]:
        return self._fields

    def apply(self, worlds: Selection, draws: Draws) -> None:
        for field in self._fields:
            things = len(self._table)
            choice = self.source.draw(draws, (1 if self.config.shared else things,), worlds).long().expand(-1, things)
            field.put(worlds, self._table[torch.arange(things, device=choice.device), choice])


def add_texture(scene: mujoco.MjSpec, name: str, picture: np.ndarray) -> None:
    """Add a picture, uint8 ``[h, w, 3]``, to a scene."""
    texture = scene.add_texture(name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, width=picture.shape[1],
                                height=picture.shape[0], nchannel=3)  # fmt: skip
    texture.data = picture.tobytes()


def keep_extent(scene: mujoco.MjSpec) -> None:
    """Fix the size that MuJoCo takes the scene for, as it is now: distances of clipping planes are shares of it."""
    model = scene.copy().compile()
    scene.stat.extent, scene.stat.center = model.stat.extent, model.stat.center


class Backdrop(Texture):
    """Puts walls around the scene, with pictures that change.

    Args:
        config: where, and which pictures.
    """

    _with_own = False
    _prefix = "backdrop"

    def __init__(self, config: BackdropConfig) -> None:
        super().__init__(config)
        self._walls = config

    def prepare(self, scene: mujoco.MjSpec) -> None:
        if self.config.names:
            raise ConfigError(f"backdrop: names={self.config.names}; expected none: its walls are new")
        c = self._walls
        keep_extent(scene)
        self._materials = ["backdrop"]
        self._names = [f"backdrop{i}" for i in range(len(self._made))]
        for name, picture in zip(self._names, self._made, strict=True):
            add_texture(scene, name, picture)
        textures = [""] * mujoco.mjtTextureRole.mjNTEXROLE.value
        textures[_RGB] = self._names[0]
        scene.add_material(name="backdrop", textures=textures, texrepeat=[1, 1], specular=0.0, reflectance=0.0)
        for i in range(4):
            turn = i * math.pi / 2
            # a plane's front is its +z, which has to point inward; its y is up, so that pictures stand upright
            x, y, d = math.cos(turn), math.sin(turn), c.distance
            axes = np.array([[y, 0.0, -x], [-x, 0.0, -y], [0.0, 1.0, 0.0]])
            quat = np.empty(4)
            mujoco.mju_mat2Quat(quat, axes.ravel())
            scene.worldbody.add_geom(
                name=f"backdrop{i}", type=mujoco.mjtGeom.mjGEOM_PLANE, pos=[d * x, d * y, 0], quat=quat,
                size=[d, c.height, 0.1], material="backdrop", contype=0, conaffinity=0,
            )  # fmt: skip


class Distractors(Event):
    """Objects that do not matter, on the table in some worlds and not in others.

    They hang on mocap bodies, so that neither positions nor velocities of the scene change their places.

    Args:
        config: how many, where.
    """

    changes_constants, changes_state = True, True

    def __init__(self, config: DistractorsConfig) -> None:
        self.config, self.when = config, config.when

    def prepare(self, scene: mujoco.MjSpec) -> None:
        self._names = [f"distractor{i}" for i in range(self.config.count)]
        keep_extent(scene)
        for i, name in enumerate(self._names):
            body = scene.worldbody.add_body(name=name, mocap=True, pos=[0, 0, _GONE])
            body.add_geom(name=name, type=_SHAPES[i % len(_SHAPES)], size=[1, 1, 1], contype=0, conaffinity=0, mass=0)
        for key in scene.keys:
            if len(key.mpos):  # what a keyframe says of mocap bodies must be of all of them
                key.mpos = [*key.mpos, *[0.0, 0.0, _GONE] * self.config.count]
                key.mquat = [*key.mquat, *[1.0, 0.0, 0.0, 0.0] * self.config.count]

    def bind(self, world: World) -> None:
        sim, m = world.sim, world.sim.model
        geoms = torch.tensor([find(m, "geom", n) for n in self._names], device=sim.device)
        self._size = Written(sim, "geom_size", slice(None), geoms)
        self._rgb = Written(sim, "geom_rgba", slice(0, 3), geoms)
        self._mocap = torch.tensor([int(m.body_mocapid[find(m, "body", n)]) for n in self._names], device=sim.device)
        self._pos, self._quat = sim.field("mocap_pos"), sim.field("mocap_quat")
        others = matching(m, "body", self.config.names, optional=self.config.optional)
        self._others = [world.free_body(labels(m, "body")[i]) for i in others]

    def written(self) -> list[Written]:
        return [self._size, self._rgb]

    def apply(self, worlds: Selection, draws: Draws) -> None:
        c, n = self.config, self.config.count
        size = draws.uniform((n, 1), *c.size) * draws.uniform((n, 3), 0.5, 1.0)
        self._size.put(worlds, size)
        self._rgb.put(worlds, draws.uniform((n, 3)))
        x, y = draws.uniform((n,), c.area[0], c.area[1]), draws.uniform((n,), c.area[2], c.area[3])
        there = draws.uniform((n,)) < c.share
        for body in self._others:
            near = (torch.stack([x, y], -1) - worlds.take(body.pos())[:, None, :2]).norm(dim=-1) < c.keep
            there = there & ~near
        down = torch.stack([size[:, i, _DOWN[i % len(_SHAPES)]].sum(-1) for i in range(n)], -1)
        height = torch.where(there, down, _GONE)
        turn = draws.uniform((n,), -math.pi, math.pi) / 2
        zero = torch.zeros_like(turn)
        worlds.put(self._pos, torch.stack([x, y, height], -1), self._mocap)
        worlds.put(self._quat, torch.stack([turn.cos(), zero, zero, turn.sin()], -1), self._mocap)
