"""Pictures of the worlds of a simulation: camera observations in batches, and single pictures for films.

Nothing here needs OpenGL before the first picture. On the engine ``warp`` cameras are observed by its ray tracer
(:mod:`~visuomotor.envs.sim.render_warp`); on all others, and in films, MuJoCo draws with OpenGL.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.data.spec import ArraySpec
from visuomotor.envs.sim.cameras import CameraConfig, camera_ids, camera_specs, film_camera
from visuomotor.envs.sim.painter import Painter, PainterPool, Scene
from visuomotor.envs.sim.simulator import Simulator
from visuomotor.envs.sim.warp import WarpSimulator

__all__ = ["CameraRenderer", "FilmRenderer", "GLCameras", "make_cameras"]

_QUALITY = {"fast": (0, 0), "full": (1024, 4)}  # side of the shadow map [px], samples a pixel
_FILM_SIZE = 480


class CameraRenderer(ABC):
    """Observes cameras of all worlds.

    Attributes:
        spec: what :meth:`observe` gives.
    """

    spec: Mapping[str, ArraySpec]

    @abstractmethod
    def observe(self, worlds: Tensor | None = None) -> dict[str, Tensor]:
        """Pictures ``{key: [N, ...]}`` of the state that the worlds are in now, on the simulator's device.

        Worlds outside ``worlds`` (bool ``[N]``; None draws all) keep the picture that was drawn of them last, where
        that saves work. Fresh tensors.

        Raises:
            RenderingError: there is nothing to draw with.
        """

    def close(self) -> None:  # noqa: B027  (only some have something to release)
        """Release graphics memory."""


def make_cameras(sim: Simulator, config: CameraConfig) -> CameraRenderer | None:
    """What observes the cameras of ``config`` on this engine; None if it names none.

    Raises:
        ConfigError: a camera that the scene does not have.
    """
    if not config.names:
        return None
    if isinstance(sim, WarpSimulator):
        from visuomotor.envs.sim.render_warp import WarpCameras  # which is a subclass of what is defined here

        return WarpCameras(sim, config)
    return GLCameras(sim, config)


class GLCameras(CameraRenderer):
    """Draws with OpenGL, in ``threads`` threads (0: one a core) that each have a context of their own.

    Per-world values of model fields are seen: colours, sizes, lights, camera poses and angles, and which texture a
    material has. A world whose state is not finite is black.
    """

    def __init__(self, sim: Simulator, config: CameraConfig, *, threads: int = 0) -> None:
        self.spec = camera_specs(sim.model, config)
        self._sim, self._config = sim, config
        self._ids = {name: camera_ids(sim.model)[name] for name in config.names}
        self._threads = threads or len(os.sched_getaffinity(0))
        self._pool: PainterPool | None = None
        self._pictures = {k: np.zeros((sim.num_envs, *s.shape), s.dtype) for k, s in self.spec.items()}

    def observe(self, worlds: Tensor | None = None) -> dict[str, Tensor]:
        n = self._sim.num_envs
        ids = range(n) if worlds is None else worlds.nonzero().flatten().tolist()
        if self._pool is None and len(ids):
            threads = min(self._threads, n * len(self._ids))
            model = _drawn(self._sim.model, self._config.height, self._config.width, self._config.quality)
            self._pool = PainterPool(model, threads)
        for world in ids:
            self._draw(world)
        if self._pool is not None:
            self._pool.join()
        return {k: torch.from_numpy(v.copy()).to(self._sim.device) for k, v in self._pictures.items()}

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _draw(self, world: int) -> None:
        assert self._pool is not None
        model, data = self._sim.mj_state(world)
        out = {k: v[world] for k, v in self._pictures.items()}
        if not np.isfinite(data.qpos).all():
            for picture in out.values():
                picture.fill(0)
            return
        for name, camera in self._ids.items():
            scene = self._pool.scene()
            scene.update(model, data, camera)
            self._pool.submit(scene, partial(_paint, name=name, out=out))


class FilmRenderer:
    """Draws one world as a nice picture: with shadows and smooth edges.

    Args:
        sim: its worlds.
        size: side of the picture [px].
        camera: index; None takes the one for films.
    """

    def __init__(self, sim: Simulator, *, size: int = _FILM_SIZE, camera: int | None = None) -> None:
        self._sim, self._size = sim, size
        self._camera = film_camera(sim.model) if camera is None else camera
        self._pool: PainterPool | None = None

    def picture(self, world: int) -> np.ndarray:
        """World ``world``: uint8 ``[size, size, 3]``.

        Raises:
            RenderingError: there is nothing to draw with.
        """
        if self._pool is None:
            self._pool = PainterPool(_drawn(self._sim.model, self._size, self._size, "full"), threads=1)
        picture = np.zeros((self._size, self._size, 3), np.uint8)
        model, data = self._sim.mj_state(world)
        if np.isfinite(data.qpos).all():
            scene = self._pool.scene()
            scene.update(model, data, self._camera)
            self._pool.submit(scene, lambda painter, scene: painter.rgb(scene, picture))
            self._pool.join()
        return picture

    def close(self) -> None:
        """Release graphics memory."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def _drawn(model: mujoco.MjModel, height: int, width: int, quality: str) -> mujoco.MjModel:
    """The model with the frame size and quality to draw with: MuJoCo has them among the model's values."""
    model = copy.copy(model)
    model.vis.quality.shadowsize, model.vis.quality.offsamples = _QUALITY[quality]
    model.vis.global_.offheight, model.vis.global_.offwidth = height, width
    return model


def _paint(painter: Painter, scene: Scene, name: str, out: dict[str, np.ndarray]) -> None:
    painter.rgb(scene, out[name])
    depth, bodies = out.get(f"{name}_depth"), out.get(f"{name}_segmentation")
    if depth is not None or bodies is not None:
        painter.geometry(scene, None if depth is None else depth[..., 0], bodies)
