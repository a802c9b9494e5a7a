"""Threads that draw MuJoCo scenes with OpenGL, each in a context of its own."""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np

from visuomotor.envs.sim.gl import make_context

__all__ = ["Painter", "PainterPool", "Scene"]

_FLAG = mujoco.mjtRndFlag
_TEXTURES = ("mat_texid", "mat_texrepeat", "mat_texuniform")  # the context has these, the scene does not


class Scene:
    """What one camera of one world sees, ready to be drawn: holds no reference to model or data."""

    def __init__(self, model: mujoco.MjModel) -> None:
        room = 2 * (model.ngeom + model.nsite) + 8 * (model.ntendon + model.nskin + model.nflex) + 200
        self.mjv = mujoco.MjvScene(model, maxgeom=room)
        self.mjv.flags[_FLAG.mjRND_SHADOW] = model.vis.quality.shadowsize > 0
        self.mjv.flags[_FLAG.mjRND_REFLECTION] = model.vis.quality.shadowsize > 0
        self._option, self._camera = mujoco.MjvOption(), mujoco.MjvCamera()
        self.textures: dict[str, np.ndarray] = {}
        self.clip = (0.0, 0.0)  # near and far plane [m]
        self.bodies = (np.zeros(0, np.int32), np.zeros(0, np.int32))  # body of each geom and of each site

    def update(self, model: mujoco.MjModel, data: mujoco.MjData, camera: int) -> None:
        """Take in a state as ``camera`` sees it; -1 is a free camera over the whole scene."""
        if camera < 0:
            mujoco.mjv_defaultFreeCamera(model, self._camera)
        else:
            self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED.value, camera
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(model, data, self._option, None, self._camera, everything, self.mjv)
        self.textures = {name: getattr(model, name).copy() for name in _TEXTURES}
        self.clip = (model.vis.map.znear * model.stat.extent, model.vis.map.zfar * model.stat.extent)
        self.bodies = (model.geom_bodyid.copy(), model.site_bodyid.copy())


class Painter:
    """An OpenGL context with the meshes and textures of ``model``; to be used by the thread that makes it only.

    Args:
        model: its ``vis`` says frame size, shadows and samples.

    Raises:
        RenderingError: no OpenGL.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        height, width = model.vis.global_.offheight, model.vis.global_.offwidth
        self._gl = make_context(width, height)
        self._mjr = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._mjr)
        self._mjr.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR.value
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._rgb, self._z = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.float32)

    def rgb(self, scene: Scene, out: np.ndarray) -> None:
        """Colours into ``out``, uint8 ``[H, W, 3]``."""
        self._draw(scene)
        mujoco.mjr_readPixels(self._rgb, None, self._rect, self._mjr)
        out[:] = self._rgb[::-1]

    def geometry(self, scene: Scene, depth: np.ndarray | None, bodies: np.ndarray | None) -> None:
        """Distance along the view [m] into ``depth`` (float32 ``[H, W]``), body ids into ``bodies`` (int32)."""
        flags = scene.mjv.flags
        before = flags.copy()
        flags[_FLAG.mjRND_SEGMENT] = flags[_FLAG.mjRND_IDCOLOR] = True  # one colour an object, no sky, no smoothing
        self._draw(scene)
        flags[:] = before
        mujoco.mjr_readPixels(self._rgb, self._z, self._rect, self._mjr)
        if depth is not None:
            near, far = scene.clip
            z = self._z[::-1].astype(np.float64)  # 1 at the near plane, 0 at the far one
            straight = bool(scene.mjv.camera[0].orthographic)
            depth[:] = far - z * (far - near) if straight else near * far / (near + z * (far - near))
        if bodies is not None:
            bodies[:] = _body_table(scene)[self._rgb[::-1].astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)]

    def free(self) -> None:
        """Release graphics memory."""
        self._mjr.free()
        self._gl.free()

    def _draw(self, scene: Scene) -> None:
        for name, value in scene.textures.items():
            getattr(self._mjr, name).reshape(-1)[: value.size] = value.reshape(-1)
        mujoco.mjr_render(self._rect, scene.mjv, self._mjr)


def _body_table(scene: Scene) -> np.ndarray:
    """Body of each colour of the segmentation: 0 is the background, ``segid + 1`` an object."""
    table = np.full(scene.mjv.ngeom + 1, -1, np.int32)
    kinds = (mujoco.mjtObj.mjOBJ_GEOM.value, mujoco.mjtObj.mjOBJ_SITE.value)
    for geom in scene.mjv.geoms[: scene.mjv.ngeom]:
        if geom.segid >= 0 and geom.objtype in kinds:
            table[geom.segid + 1] = scene.bodies[kinds.index(geom.objtype)][geom.objid]
    return table


Job = Callable[[Painter, Scene], None]


class PainterPool:
    """Threads with a painter each; scenes circulate between the caller, who fills them, and the threads.

    Args:
        model: what painters are made of.
        threads: how many.
    """

    def __init__(self, model: mujoco.MjModel, threads: int) -> None:
        self._jobs: queue.SimpleQueue[tuple[Scene, Job] | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[Scene] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        for _ in range(2 * threads):  # one being drawn and one being filled, for each
            self._free.put(Scene(model))
        self._waiting = 0
        arguments = (model, self._jobs, self._free, self._done)
        workers = [threading.Thread(target=_work, args=arguments, daemon=True) for _ in range(threads)]
        for worker in workers:
            worker.start()
        # also at exit: a context that is still alive when its library is unloaded crashes the interpreter
        self._stop = weakref.finalize(self, _stop, self._jobs, workers)

    def scene(self) -> Scene:
        """A scene to fill and :meth:`submit`; waits until one is free."""
        return self._free.get()

    def submit(self, scene: Scene, job: Job) -> None:
        """Let a thread run ``job(painter, scene)``."""
        self._waiting += 1
        self._jobs.put((scene, job))

    def join(self) -> None:
        """Wait for all jobs; raises the first error of them."""
        error: BaseException | None = None
        while self._waiting:
            found = self._done.get()
            self._waiting -= 1
            error = error or found
        if error is not None:
            raise error

    def close(self) -> None:
        """End the threads and release their contexts."""
        self._stop()


def _work(model: mujoco.MjModel, jobs: Any, free: Any, done: Any) -> None:
    painter: Painter | None = None
    while (item := jobs.get()) is not None:
        scene, job = item
        try:
            painter = painter or Painter(model)
            job(painter, scene)
            done.put(None)
        except Exception as error:  # goes to the caller
            done.put(error)
        finally:
            free.put(scene)
    if painter is not None:
        painter.free()


def _stop(jobs: Any, workers: list[threading.Thread]) -> None:
    for _ in workers:
        jobs.put(None)
    for worker in workers:
        with contextlib.suppress(RuntimeError):  # at the interpreter's end
            worker.join(timeout=5.0)
