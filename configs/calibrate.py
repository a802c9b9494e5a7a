"""``visuomotor calibrate-latency`` and ``calibrate-camera``: what a deployment needs to know and nobody tells it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from visuomotor.configs.compose import parse_plain
from visuomotor.configs.robots import take_robot, transport_words
from visuomotor.data.errors import ConfigError
from visuomotor.sim2real.calibration.delay import Chirp
from visuomotor.sim2real.calibration.latency import Latencies, LatencyProbe
from visuomotor.sim2real.robots.limits import arm_limits, load_kinematics
from visuomotor.sim2real.transports.base import Transport
from visuomotor.sim2real.transports.choose import TransportConfig, make_transport

__all__ = ["LatencyConfig", "main_latency"]


@dataclass(kw_only=True, slots=True)
class LatencyConfig:
    """``visuomotor calibrate-latency robot=<name>``: delays of commands and cameras. **One joint of the arm moves.**

    Attributes:
        joint: that moves; null: the last one, which sweeps the least.
        amplitude: of its motion [rad]; less where its limits ask for it.
        low_hz, high_hz: the motion's frequency at the beginning and at the end.
        seconds: that it moves.
        cameras: whose delay is measured too; the motion has to be seen in their pictures: choose a joint that moves
            much of them.
        yes: do not ask before moving.
        transport: how to reach the robot; short for its name: ``transport=dds``.
    """

    joint: str | None = None
    amplitude: float = 0.1
    low_hz: float = 0.5
    high_hz: float = 2.5
    seconds: float = 6.0
    cameras: list[str] = field(default_factory=list)
    yes: bool = False
    transport: TransportConfig = field(default_factory=lambda: TransportConfig(node="visuomotor_calibration"))

    def __post_init__(self) -> None:
        for name in ("amplitude", "low_hz", "high_hz", "seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name):g}: expected more than 0, and finite")
        if not self.low_hz < self.high_hz:
            raise ConfigError(f"low_hz={self.low_hz:g}, high_hz={self.high_hz:g}: expected a growing frequency")
        if self.seconds * self.low_hz < 1:
            raise ConfigError(f"seconds={self.seconds:g} is less than one period of low_hz={self.low_hz:g}")
        if self.transport.name == "inproc":
            raise ConfigError("transport=inproc reaches nobody outside its own process: give transport=dds")


def main_latency(words: Sequence[str], ask: Callable[[str], str] = input) -> int:
    """Measure delays as ``words`` say (``key=value ...``); returns the exit status."""
    robot, rest = take_robot(words)
    config = parse_plain(LatencyConfig, transport_words(rest))
    kinematics = load_kinematics(robot)
    limits = arm_limits(robot, kinematics)
    joint = robot.joints[-1] if config.joint is None else config.joint
    console = Console()
    question = (
        f"Joint {joint!r} of {robot.name} will swing by up to {config.amplitude:g} rad for {config.seconds:g} s. "
        "Is the space around the arm free, and a hand at the emergency stop? Type yes: "
    )
    if not config.yes and ask(question).strip().lower() != "yes":
        console.print("nothing was moved")
        return 1
    transport = make_transport(config.transport)
    try:
        probe = LatencyProbe(
            robot, transport, limits, kinematics, lambda t: _sleep_until(transport, t), tuple(config.cameras)
        )
        found = probe.measure(joint, Chirp(config.amplitude, config.low_hz, config.high_hz, config.seconds))
    finally:
        transport.close()
    _tell(found, console)
    return 0


def _sleep_until(transport: Transport, time_ns: int) -> None:
    left = time_ns - transport.now_ns()
    if left > 0:
        time.sleep(left * 1e-9)


def _tell(found: Latencies, console: Console) -> None:
    lines = [
        f"joint {found.joint!r} moved by {found.amplitude:.3f} rad",
        f"commands: {1e3 * found.command.seconds:.1f} ms (correlation {found.command.correlation:.3f})",
    ]
    settings = [f"robot.command.latency_s={max(0.0, found.command.seconds):.4f}"]
    for key, delay in found.cameras.items():
        if delay is None:
            lines.append(f"camera {key!r}: no motion seen; choose a joint that moves its picture, or more light")
            continue
        lines.append(f"camera {key!r}: {1e3 * delay.seconds:.1f} ms (correlation {delay.correlation:.3f})")
        settings.append(f"robot.cameras.{key}.latency_s={max(0.0, delay.seconds):.4f}")
    console.print("\n".join([*lines, "settings:", *(f"  {s}" for s in settings)]), highlight=False, markup=False)
