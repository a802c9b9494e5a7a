"""Cameras of a simulation: which are observed, and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

import mujoco

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.spec import ArraySpec

__all__ = ["QUALITIES", "CameraConfig", "camera_ids", "camera_specs", "film_camera"]

QUALITIES = ("fast", "full")


@dataclass(kw_only=True, slots=True)
class CameraConfig:
    """Which cameras are observed, and how.

    Attributes:
        names: cameras of the scene; each becomes an observation of its name, uint8 RGB.
        height, width: of their pictures [px].
        depth: those of them that also give the observation ``<name>_depth`` [m], measured along the view.
        segmentation: those of them that also give ``<name>_segmentation``: the body seen in each pixel (0 is what
            belongs to the world, such as the table; -1 is nothing).
        quality: ``fast`` (no shadows, hard edges; about 25 times as fast without a graphics card) or ``full``.
    """

    names: list[str] = field(default_factory=list)
    height: int = 84
    width: int = 84
    depth: list[str] = field(default_factory=list)
    segmentation: list[str] = field(default_factory=list)
    quality: str = "fast"

    def __post_init__(self) -> None:
        for side in ("height", "width"):
            if getattr(self, side) < 8:
                raise ConfigError(f"cameras.{side}={getattr(self, side)}: expected at least 8 pixels")
        if self.quality not in QUALITIES:
            raise ConfigError(f"unknown cameras.quality {self.quality!r}. {nearest(self.quality, QUALITIES)}")
        if len(set(self.names)) < len(self.names):
            raise ConfigError(f"cameras.names={self.names}: expected each camera once")
        for kind in ("depth", "segmentation"):
            for name in getattr(self, kind):
                if name not in self.names:
                    raise ConfigError(
                        f"cameras.{kind} names {name!r}, which is not observed. {nearest(name, self.names)}"
                    )


def camera_ids(model: mujoco.MjModel) -> dict[str, int]:
    """Index of each camera by the name it is observed under: without the ``robot/`` that tells arms from the scene.

    So the camera ``robot/wrist`` of a single arm is ``wrist``, and ``left_robot/wrist`` of one of two ``left_wrist``.
    """
    return {model.camera(i).name.replace("robot/", ""): i for i in range(model.ncam)}


def camera_specs(model: mujoco.MjModel, config: CameraConfig) -> dict[str, ArraySpec]:
    """What the cameras give.

    Raises:
        ConfigError: a camera that the scene does not have.
    """
    known, size = camera_ids(model), (config.height, config.width)
    out: dict[str, ArraySpec] = {}
    for name in config.names:
        if name not in known:
            raise ConfigError(f"the scene has no camera {name!r}. {nearest(name, known)}")
        source = f"camera {name}"
        out[name] = ArraySpec(shape=(*size, 3), dtype="uint8", role="observation", source=source)
        if name in config.depth:
            out[f"{name}_depth"] = ArraySpec(shape=(*size, 1), role="observation", unit="m", source=source)
        if name in config.segmentation:
            out[f"{name}_segmentation"] = ArraySpec(shape=size, dtype="int32", role="observation", source=source)
    return out


def film_camera(model: mujoco.MjModel) -> int:
    """The camera of films: ``film`` if there is one, else the first; -1 (free, over the whole scene) without any."""
    known = camera_ids(model)
    return known.get("film", min(known.values(), default=-1))
