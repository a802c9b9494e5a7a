"""A window on one world of a simulation: MuJoCo's interactive viewer."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import mujoco

from visuomotor.data.errors import UserError
from visuomotor.envs.sim.cameras import film_camera
from visuomotor.envs.sim.env import SimVecEnv

__all__ = ["Window"]


class Window:
    """World 0 of ``env``, to be looked at from all sides with the mouse. A context manager.

    Args:
        env: whose world is shown.
        on_key: called with GLFW's code of each key, from the window's own thread.

    Raises:
        UserError: there is no screen, or no window can be opened on it.
    """

    def __init__(self, env: SimVecEnv, on_key: Callable[[int], None]) -> None:
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise UserError(
                "this opens a window, and there is no screen (DISPLAY is not set). Without one, `visuomotor eval` films"
                " what a policy does; over ssh, a screen is lent by `ssh -X`, or virtually by `xvfb-run`"
            )
        import mujoco.viewer as viewer

        self._env = env
        others = set(threading.enumerate())
        model, data = env.sim.mj_state(0)
        try:
            self._handle: Any = viewer.launch_passive(
                model, data, key_callback=on_key, show_left_ui=False, show_right_ui=False
            )
        except Exception as error:  # of glfw or of MuJoCo, depending on what is missing
            raise UserError(f"no window can be opened on the screen {os.environ.get('DISPLAY')}: {error}") from error
        self._threads = set(threading.enumerate()) - others
        self._place_camera(model, data)

    def show(self, status: str) -> bool:
        """Show the state that the world is in now, with ``status`` in a corner; False once the window was closed."""
        if not self._handle.is_running():
            return False
        with self._handle.lock():
            self._env.sim.mj_state(0)  # overwrites the model and data that the window was given
        font, corner = mujoco.mjtFontScale.mjFONTSCALE_150, mujoco.mjtGridPos.mjGRID_TOPLEFT
        self._handle.set_texts((font, corner, status, ""))
        self._handle.sync()
        return True

    def _place_camera(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Begin where films are taken from, but free to be moved."""
        index = film_camera(model)
        if index < 0:
            return
        cam, pos, forward = self._handle.cam, data.cam_xpos[index], -data.cam_xmat[index].reshape(3, 3)[:, 2]
        distance = float(abs(pos[2] / forward[2])) if abs(forward[2]) > 0.1 else model.stat.extent
        with self._handle.lock():
            cam.lookat[:] = pos + distance * forward
            cam.distance = distance
            cam.azimuth = math.degrees(math.atan2(forward[1], forward[0]))
            cam.elevation = math.degrees(math.asin(forward[2]))

    def __enter__(self) -> Window:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._handle.close()
        for thread in self._threads:  # it draws with libraries that the interpreter's end would take from under it
            thread.join(timeout=5.0)
