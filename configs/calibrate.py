"""``visuomotor calibrate-latency`` and ``calibrate-camera``: what a deployment needs to know and nobody tells it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console

from visuomotor.configs.compose import parse_plain
from visuomotor.configs.robots import take_robot, transport_words
from visuomotor.data.errors import ConfigError, UserError, nearest
from visuomotor.sim2real.calibration.board import Board, BoardConfig
from visuomotor.sim2real.calibration.camera import MOUNTS, PoseTaker, Taken, load_taken, save_taken, solve_mounting
from visuomotor.sim2real.calibration.delay import Chirp
from visuomotor.sim2real.calibration.latency import Latencies, LatencyProbe
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.robots.limits import arm_limits, load_kinematics
from visuomotor.sim2real.transports.base import Transport
from visuomotor.sim2real.transports.choose import TransportConfig, make_transport

__all__ = ["CameraCalibrationConfig", "LatencyConfig", "main_camera", "main_latency"]


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
    if not config.yes and _answer(ask, question, "no") != "yes":
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


@dataclass(kw_only=True, slots=True)
class CameraCalibrationConfig:
    """``visuomotor calibrate-camera robot=<name> camera=<key>``: where a camera is mounted, by a ChArUco board.

    Move the arm by hand or pendant so that the camera sees the board from ten and more sides, and press Enter at each.

    Attributes:
        camera: key of the robot's camera.
        mount: ``hand`` (the board lies on the table) or ``base`` (the camera stands beside the arm, the board is held
            by the hand).
        out: folder for the pictures, the poses and ``camera.json``.
        poses: work with what such a folder holds already, without a robot.
        board: that is used.
        print_board: write the board as a picture to print, and end.
        transport: how to reach the robot; short for its name: ``transport=dds``.
    """

    camera: str = "wrist"
    mount: str = "hand"
    out: str = "camera_calibration"
    poses: str | None = None
    board: BoardConfig = field(default_factory=BoardConfig)
    print_board: str | None = None
    transport: TransportConfig = field(default_factory=lambda: TransportConfig(node="visuomotor_calibration"))

    def __post_init__(self) -> None:
        if self.mount not in MOUNTS:
            raise ConfigError(f"unknown mount {self.mount!r}. {nearest(self.mount, MOUNTS)}")
        if self.transport.name == "inproc":
            raise ConfigError("transport=inproc reaches nobody outside its own process: give transport=dds")


def main_camera(words: Sequence[str], ask: Callable[[str], str] = input) -> int:
    """Calibrate a camera as ``words`` say (``key=value ...``); returns the exit status."""
    robot, rest = take_robot(words)
    config = parse_plain(CameraCalibrationConfig, transport_words(rest))
    board, console = Board(config.board), Console()
    if config.print_board is not None:
        return _print_board(board, Path(config.print_board).expanduser(), console)
    kinematics = load_kinematics(robot)
    if kinematics is None:
        raise ConfigError("the hand's pose takes a model of the arm: give robot.model=")
    if config.poses is not None:
        folder = Path(config.poses).expanduser()
        taken = load_taken(folder, robot.joints)
    else:
        folder = Path(config.out).expanduser()
        taken = []
        try:
            _take(robot, config, board, ask, console, taken)
        finally:  # ten poses of an arm are work, whatever ends it: `poses=` goes on with them
            if taken:
                save_taken(folder, taken, robot.joints)
    mounting = solve_mounting(taken, board, kinematics, config.mount)
    document = {"camera": config.camera, **mounting.document()}
    (folder / "camera.json").write_text(json.dumps(document, indent=1))
    f = mounting.found
    console.print(
        f"{folder / 'camera.json'}: camera {config.camera!r} on the {config.mount}, from {mounting.used} of "
        f"{mounting.taken} pictures\n  position {np.round(f.camera[:3, 3], 4).tolist()} m, q_wxyz "
        f"{np.round(document['q_wxyz'], 4).tolist()}\n  corners within {mounting.reprojection_px:.2f} px, poses agree "
        f"within {1e3 * f.position_m:.1f} mm and {math.degrees(f.turn_rad):.2f} degrees (root mean squares)",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _take(
    robot: RobotConfig, config: CameraCalibrationConfig, board: Board, ask: Callable[[str], str], console: Console,
    taken: list[Taken],
) -> None:  # fmt: skip
    """Pictures and poses as the person asks for them, added to ``taken``."""
    transport = make_transport(config.transport)
    try:
        taker = PoseTaker(robot, config.camera, transport, time.sleep)
        while _answer(ask, f"{len(taken)} pictures. Enter takes one, d ends: ", "d") not in ("d", "done", "q"):
            try:
                one = taker.take()
            except UserError as e:
                console.print(str(e), highlight=False)
                continue
            view = board.find(one.picture)
            if view is None:
                console.print("the board is not seen; nothing was kept")
                continue
            taken.append(one)
            console.print(f"{len(view.pixels)} corners")
    finally:
        transport.close()


def _answer(ask: Callable[[str], str], question: str, nobody: str) -> str:
    """What the person types; ``nobody`` where nobody can: a script without a terminal, or Ctrl-D."""
    try:
        return ask(question).strip().lower()
    except EOFError:
        return nobody


def _print_board(board: Board, path: Path, console: Console) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), board.picture()):
        raise ConfigError(f"print_board={path}: cannot be written; give a name that ends in .png")
    c = board.config
    console.print(
        f"{path}: print it {1e3 * c.columns * c.square:.0f} x {1e3 * c.rows * c.square:.0f} mm, on something flat, and "
        "measure a square: board.square=",
        highlight=False,
    )
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
