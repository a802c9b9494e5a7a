"""Settings of the twin."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from visuomotor.data.errors import ConfigError, nearest

__all__ = ["ENCODINGS", "TwinConfig"]

ENCODINGS = ("rgb8", "bgr8", "mono8")


@dataclass(kw_only=True, slots=True)
class TwinConfig:
    """How good the twin's sensors and links are. Everything drawn is a function of ``seed`` and the episode.

    Attributes:
        rate_hz: of its controllers and its physics; a multiple of the task's control rate that divides the physics'
            rate, or is a multiple of it (which makes physics finer). 0: the physics' own rate.
        latency_ms: by which every message of a sensor comes after what it shows; its stamp says when that was.
        command_latency_ms: from receiving a command to obeying it.
        noise: factor on the five below; 0 switches noise off.
        joint_noise: standard deviation of measured joint positions [rad or m].
        velocity_noise: of measured joint velocities [rad/s or m/s].
        position_noise: of an object's estimated position [m], and of numbers.
        turn_noise: of an object's estimated orientation, about a random axis [rad].
        picture_noise: of a camera's pixels [of 255 levels], alike in the three colours. Pictures of a real camera are
            never the same twice; one whose pictures are, counts as frozen.
        drop: share of the messages of every sensor that is lost.
        encoder_offset: standard deviation of constant errors of the encoders [rad], drawn once.
        values_hz: rate of the estimators of poses and other values.
        cameras: those of the robot's that are drawn.
        height, width: of their pictures [px].
        encoding: of their pictures: ``rgb8``, ``bgr8`` or ``mono8``.
        seed: of noise, offsets and the order of joints.
        first_seed: of the first episode; each reset goes on with the next, or with the one that it names.
    """

    rate_hz: float = 0.0
    latency_ms: float = 0.0
    command_latency_ms: float = 0.0
    noise: float = 1.0
    joint_noise: float = 2e-4
    velocity_noise: float = 5e-3
    position_noise: float = 1e-3
    turn_noise: float = 5e-3
    picture_noise: float = 2.0
    drop: float = 0.0
    encoder_offset: float = 0.0
    values_hz: float = 50.0
    cameras: list[str] = field(default_factory=list)
    height: int = 120
    width: int = 160
    encoding: str = "rgb8"
    seed: int = 0
    first_seed: int = 100_000

    def __post_init__(self) -> None:
        for name in (
            "rate_hz", "latency_ms", "command_latency_ms", "noise", "joint_noise", "velocity_noise", "position_noise",
            "turn_noise", "picture_noise", "encoder_offset", "seed", "first_seed",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name):g}: expected 0 or more, and finite")
        if not 0 < self.values_hz < math.inf:
            raise ConfigError(f"values_hz={self.values_hz:g}: expected more than 0, and finite")
        if not 0 <= self.drop < 1:
            raise ConfigError(f"drop={self.drop:g}: expected a share from 0 to less than 1")
        if self.encoding not in ENCODINGS:
            raise ConfigError(f"unknown encoding {self.encoding!r}. {nearest(self.encoding, ENCODINGS)}")
        if min(self.height, self.width) < 8:
            raise ConfigError(f"height={self.height}, width={self.width}: expected at least 8 pixels")
