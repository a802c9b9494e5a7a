"""Recorded simulator states as the observations that were not recorded: poses of bodies and sites, pictures of cameras.

A state is MuJoCo's time, joint positions and joint velocities in one row, as robosuite and robomimic keep them
("flattened state": ``1 + nq + nv`` numbers). Nothing is simulated: each row is set, and what follows from it by
kinematics is read (MuJoCo's documentation, "Computation: Forward kinematics").
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import mujoco
import numpy as np

from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.sim.painter import Painter, PainterPool, Scene

__all__ = ["ReplayConfig", "StateReplay", "replay_specs"]

_SHADOW_SIZE, _SAMPLES = 1024, 4  # side of the shadow map [px], samples a pixel


@dataclass(kw_only=True, slots=True)
class ReplayConfig:
    """What is read of each state.

    Attributes:
        bodies: names of bodies: ``<body>_pos`` [m] and ``<body>_quat`` (w x y z) in the world.
        sites: names of sites, likewise.
        cameras: names of cameras: ``<camera>_image``.
        height: of the pictures [px].
        width: of the pictures [px].
        geom_groups: groups of geoms that are drawn; robosuite's pictures show group 1 alone. Sites are not drawn.
    """

    bodies: Sequence[str] = ()
    sites: Sequence[str] = ()
    cameras: Sequence[str] = ()
    height: int = 128
    width: int = 128
    geom_groups: Sequence[int] = (0, 1, 2)


def replay_specs(config: ReplayConfig) -> dict[str, ArraySpec]:
    """What :meth:`StateReplay.replay` gives.

    Raises:
        ConfigError: nothing is asked for, something twice, or a size below 1.
    """
    specs = {}
    for kind, names in (("body", config.bodies), ("site", config.sites)):
        for name in names:
            specs[f"{name}_pos"] = ArraySpec(
                shape=(3,), role="observation", unit="m", names=("x", "y", "z"), source=f"{kind} {name}"
            )
            specs[f"{name}_quat"] = ArraySpec(
                shape=(4,), role="observation", names=("qw", "qx", "qy", "qz"), source=f"{kind} {name}"
            )
    for name in config.cameras:
        shape = (config.height, config.width, 3)
        specs[f"{name}_image"] = ArraySpec(shape=shape, dtype="uint8", role="observation", source=f"camera {name}")
    if not specs or len(specs) < 2 * len(config.bodies) + 2 * len(config.sites) + len(config.cameras):
        raise ConfigError("name bodies, sites or cameras to read, each once: bodies=[...], sites=[...], cameras=[...]")
    if min(config.height, config.width) < 1:
        raise ConfigError(f"pictures of {config.height} x {config.width} pixels: expected at least 1")
    return specs


class StateReplay:
    """Reads states of one model. Pictures are drawn in a thread of its own: close it.

    Raises:
        ConfigError: a body, site or camera that the model does not have.
    """

    def __init__(self, model: mujoco.MjModel, config: ReplayConfig) -> None:
        self.specs = replay_specs(config)
        self._model, self._config = copy.copy(model), config
        visual = self._model.vis
        visual.quality.shadowsize, visual.quality.offsamples = _SHADOW_SIZE, _SAMPLES
        visual.global_.offheight, visual.global_.offwidth = config.height, config.width
        hidden = ~np.isin(self._model.geom_group, list(config.geom_groups))
        self._model.geom_rgba[hidden, 3], self._model.geom_matid[hidden] = 0, -1
        self._model.site_rgba[:, 3] = 0
        self._model.site_matid[:] = -1
        self._data = mujoco.MjData(self._model)
        self._bodies = {n: _index(model, mujoco.mjtObj.mjOBJ_BODY, model.nbody, n) for n in config.bodies}
        self._sites = {n: _index(model, mujoco.mjtObj.mjOBJ_SITE, model.nsite, n) for n in config.sites}
        self._cameras = {n: _index(model, mujoco.mjtObj.mjOBJ_CAMERA, model.ncam, n) for n in config.cameras}
        self._pool = PainterPool(self._model, threads=1) if config.cameras else None

    def replay(self, states: np.ndarray) -> dict[str, np.ndarray]:
        """``states [T, 1 + nq + nv]`` to ``{key: [T, ...]}`` of :attr:`specs`.

        Raises:
            DataError: states of another model, or values that are not finite.
            RenderingError: pictures are asked for, and there is no OpenGL.
        """
        model = self._model
        width = 1 + model.nq + model.nv
        if states.ndim != 2 or states.shape[1] != width:
            raise DataError(
                f"states of shape {list(states.shape)} are not of this model: expected [T, {width}] "
                f"(time, {model.nq} positions, {model.nv} velocities)"
            )
        if not np.isfinite(states).all():
            raise DataError("states that are not finite cannot be replayed")
        out = {key: np.empty((len(states), *spec.shape), spec.dtype) for key, spec in self.specs.items()}
        for row, state in enumerate(states):
            self._set(state)
            self._read_poses(out, row)
            self._draw(out, row)
        return out

    def close(self) -> None:
        """Release graphics memory."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> StateReplay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _set(self, state: np.ndarray) -> None:
        data, nq = self._data, self._model.nq
        data.time, data.qpos[:], data.qvel[:] = state[0], state[1 : 1 + nq], state[1 + nq :]
        mujoco.mj_kinematics(self._model, data)
        mujoco.mj_comPos(self._model, data)
        mujoco.mj_camlight(self._model, data)

    def _read_poses(self, out: dict[str, np.ndarray], row: int) -> None:
        for name, i in self._bodies.items():
            out[f"{name}_pos"][row], out[f"{name}_quat"][row] = self._data.xpos[i], self._data.xquat[i]
        quat = np.empty(4)
        for name, i in self._sites.items():
            mujoco.mju_mat2Quat(quat, self._data.site_xmat[i])
            if row and quat @ out[f"{name}_quat"][row - 1] < 0:
                quat *= -1  # the same rotation; a matrix does not say which of the two
            out[f"{name}_pos"][row], out[f"{name}_quat"][row] = self._data.site_xpos[i], quat

    def _draw(self, out: dict[str, np.ndarray], row: int) -> None:
        for name, camera in self._cameras.items():
            assert self._pool is not None
            scene = self._pool.scene()
            scene.update(self._model, self._data, camera)
            picture = out[f"{name}_image"][row]
            self._pool.submit(scene, _painting(picture))
            self._pool.join()


def _painting(picture: np.ndarray) -> Callable[[Painter, Scene], None]:
    def job(painter: Painter, scene: Scene) -> None:
        painter.rgb(scene, picture)

    return job


def _index(model: mujoco.MjModel, kind: mujoco.mjtObj, count: int, name: str) -> int:
    found = int(mujoco.mj_name2id(model, kind, name))
    if found < 0:
        known = [n for i in range(count) if (n := mujoco.mj_id2name(model, kind, i))]
        word = kind.name.removeprefix("mjOBJ_").lower()
        raise ConfigError(f"the recorded model has no {word} {name!r}. {nearest(name, known)}")
    return found
