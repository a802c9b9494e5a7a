"""Which OpenGL draws off screen. Nothing here touches OpenGL before the first picture is asked for."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from functools import cache
from typing import Any

from visuomotor.data.errors import UserError, nearest

__all__ = ["BACKENDS", "RenderingError", "backend_name", "make_context"]

BACKENDS = ("egl", "osmesa", "glfw")
_OFF = ("disable", "disabled", "off", "false", "0")
_ON = ("", "enable", "enabled", "on", "true", "1")  # MuJoCo's words for "choose one yourself"
_PLATFORM_DEVICE, _SUCCESS = 0x313F, 1  # EGL_PLATFORM_DEVICE_EXT, EGL_TRUE
_INSTALL = (
    "install EGL (Debian and Ubuntu: apt install libegl1 libegl-mesa0; with an NVIDIA card its driver has it) or "
    "OSMesa (apt install libosmesa6)"
)


class RenderingError(UserError):
    """No picture can be drawn on this machine; physics and everything without pictures goes on."""


@cache
def backend_name() -> str:
    """Which of :data:`BACKENDS` draws: ``MUJOCO_GL`` where it is set, else EGL, OSMesa, or a hidden window.

    MuJoCo itself would take the hidden window, which needs a screen and the main thread.

    Raises:
        RenderingError: none works, or ``MUJOCO_GL`` names none.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    if wanted in _OFF:
        raise RenderingError(f"MUJOCO_GL={wanted} switches pictures off: unset it")
    if wanted in BACKENDS:
        return wanted
    if wanted not in _ON:
        raise RenderingError(f"MUJOCO_GL={wanted} is unknown here. {nearest(wanted, BACKENDS)}")
    if _egl_works():
        return "egl"
    if ctypes.util.find_library("OSMesa") is not None:
        return "osmesa"
    if os.environ.get("DISPLAY"):
        return "glfw"
    raise RenderingError(f"pictures need OpenGL without a screen, and there is none: {_INSTALL}")


def make_context(width: int, height: int) -> Any:
    """A context with ``make_current()`` and ``free()``; of the calling thread.

    Raises:
        RenderingError: it cannot be had.
    """
    name = backend_name()
    try:
        if name == "egl":
            from mujoco.egl import GLContext
        elif name == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            from mujoco.glfw import GLContext
        context = GLContext(width, height)
        context.make_current()
    except Exception as error:  # PyOpenGL raises whatever the missing library happens to cause
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RenderingError(f"OpenGL by {name} cannot start ({reason}): {_INSTALL}") from error
    return context


def _egl_works() -> bool:
    """True if a device can be opened without a screen; asked of the library itself.

    PyOpenGL binds itself to the first backend that is imported, so trying one and then the other is not possible.
    """
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    query = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    display_of = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query or not display_of:
        return False
    devices, n = (ctypes.c_void_p * 16)(), ctypes.c_int(0)
    signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    if signature(query)(len(devices), devices, ctypes.byref(n)) != _SUCCESS:
        return False
    open_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(display_of)
    egl.eglInitialize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    displays = (open_display(_PLATFORM_DEVICE, device, None) for device in devices[: n.value])
    return any(d and egl.eglInitialize(d, None, None) == _SUCCESS for d in displays)
