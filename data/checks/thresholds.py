"""Above what a check speaks up. The defaults are chosen so that sound demonstrations, human or scripted, pass."""

from __future__ import annotations

from dataclasses import dataclass

from visuomotor.data.errors import ConfigError

__all__ = ["Thresholds"]


@dataclass(kw_only=True, slots=True)
class Thresholds:
    """Limits of the checks.

    Attributes:
        idle_speed: a component rests when it moves less than this share of its usual speed (the 95th percentile of
            its moving steps).
        idle_s: shortest rest that counts [s]; without a rate ``idle_steps``.
        idle_steps: the same in steps, for stores that do not say their rate.
        idle_share: share of resting steps above which the store gets a warning instead of a note.
        jump_factor: a step is a jump when it is longer than this many times the 99th percentile of all steps of that
            component, and the 95th percentile of its episode.
        jump_range: and longer than this share of the component's range (1st to 99th percentile).
        jump_range_action: the same for actions, which may change at once: a robot is told to stop.
        max_speed_m_s, max_speed_rad_s: speeds that no arm has, for observations whose unit and rate are known.
        saturated_share: share of steps at exactly the smallest or the largest value.
        frozen_s: shortest run of identical frames, while the robot moves, that counts [s]; without a rate
            ``frozen_frames``.
        frozen_frames: the same in frames.
        frozen_motion: how far the robot moves in that run, as a share of a component's range.
        repeated_share: share of repeated frames, among those in which the robot moves, above which the camera is
            slower than the store.
        dark_level: a frame whose brightest pixel is not above this (of 255) is black.
        dark_frames: shortest run of black frames.
        gap: a time step is a gap when it is longer than this many times the usual one.
        jitter: 95th percentile of the deviation from the usual time step, as a share of it.
        rate: relative difference of the usual time step from ``1 / fps``.
        quaternion_norm: deviation of a quaternion's length from 1.
        max_lag: offsets between actions and states that are tried, in steps either way.
        duplicate_distance: root mean square distance of two episodes, both resampled to 16 points and each component
            divided by its range, below which they are the same.
        duplicate_share: share of steps that two episodes have in common, bit for bit, above which they overlap.
        length_deviation, length_factor: an episode is of unusual length when it is beyond both: robust standard
            deviations of the logarithm, and a factor from the median.
        outlier_deviation: robust standard deviations of an episode's distance from the others.
    """

    idle_speed: float = 0.05
    idle_s: float = 1.0
    idle_steps: int = 10
    idle_share: float = 0.1
    jump_factor: float = 10.0
    jump_range: float = 0.05
    jump_range_action: float = 1.0
    max_speed_m_s: float = 10.0
    max_speed_rad_s: float = 50.0
    saturated_share: float = 0.1
    frozen_s: float = 0.5
    frozen_frames: int = 10
    frozen_motion: float = 0.1
    repeated_share: float = 0.3
    dark_level: float = 10.0
    dark_frames: int = 10
    gap: float = 1.75
    jitter: float = 0.25
    rate: float = 0.05
    quaternion_norm: float = 1e-3
    max_lag: int = 10
    duplicate_distance: float = 0.002
    duplicate_share: float = 0.5
    length_deviation: float = 5.0
    length_factor: float = 3.0
    outlier_deviation: float = 8.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) >= 0:
                raise ConfigError(f"thresholds.{name}={getattr(self, name)}: expected 0 or more")

    def idle_length(self, fps: float | None) -> int:
        """Steps of the shortest rest that counts."""
        return self.idle_steps if fps is None else max(2, round(self.idle_s * fps))

    def frozen_length(self, fps: float | None) -> int:
        """Repeated frames of the shortest freeze that counts."""
        return self.frozen_frames if fps is None else max(4, round(self.frozen_s * fps))
