"""The mounting of a camera from pictures of a board, taken at poses of the arm."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from visuomotor.data.errors import ConfigError, DataError, UserError, nearest
from visuomotor.data.rotations import matrix_to_quat
from visuomotor.sim2real.calibration.board import Board, Corners, Intrinsics
from visuomotor.sim2real.calibration.handeye import HandEye, hand_eye, transform
from visuomotor.sim2real.kinematics import Kinematics
from visuomotor.sim2real.messages import CompressedImage, Image, JointState
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.robots.topics import camera_message
from visuomotor.sim2real.runtime.images import pixels
from visuomotor.sim2real.transports.base import Transport

__all__ = ["MOUNTS", "Mounting", "PoseTaker", "Taken", "load_taken", "save_taken", "solve_mounting"]

MOUNTS = ("hand", "base")
_STILL = 0.01  # [rad/s]: faster, picture and joints are not of the same moment
_FILE = "poses.json"


@dataclass(frozen=True)
class Taken:
    """A picture uint8 ``[H, W, 3]`` RGB, and the joint positions ``[n]`` at which it was taken."""

    picture: np.ndarray
    joints: np.ndarray


@dataclass(frozen=True)
class Mounting:
    """Where a camera is.

    Attributes:
        mount: what carries it.
        found: its pose on that, and how well the poses agree.
        camera: its intrinsics.
        reprojection_px: root mean square over all corners of the poses.
        used, taken: pictures in which the board was found, and of all.
    """

    mount: str
    found: HandEye
    camera: Intrinsics
    reprojection_px: float
    used: int
    taken: int

    def document(self) -> dict[str, Any]:
        """JSON-ready: the pose of the camera (x right, y down, z forward) in the frame of its mount."""
        pose = self.found.camera
        return {
            "mount": self.mount,
            "position": pose[:3, 3].tolist(),
            "q_wxyz": np.asarray(matrix_to_quat(pose[:3, :3])).tolist(),
            f"T_{self.mount}_camera": pose.tolist(),
            "matrix": self.camera.matrix.tolist(),
            "distortion": self.camera.distortion.tolist(),
            "width": self.camera.width,
            "height": self.camera.height,
            "reprojection_px": self.reprojection_px,
            "residual_m": self.found.position_m,
            "residual_rad": self.found.turn_rad,
            "pictures": self.used,
        }


def solve_mounting(
    taken: Sequence[Taken], board: Board, kinematics: Kinematics, mount: str, camera: Intrinsics | None = None
) -> Mounting:
    """The mounting of a camera on the ``hand``, or beside the arm (``base``) with the board in the hand.

    Args:
        camera: intrinsics that are known; None: worked out from the same pictures.

    Raises:
        UserError: too few pictures with the board, or poses from which the mounting cannot be told.
    """
    found: list[tuple[Corners, np.ndarray]] = []
    for t in taken:
        view = board.find(t.picture)
        if view is not None:
            found.append((view, t.joints))
    if not found:
        raise UserError(
            f"the board was found in none of {len(taken)} pictures: is it {board.config.columns} x {board.config.rows} "
            f"squares with markers {board.config.dictionary}, whole and in focus?"
        )
    height, width = taken[0].picture.shape[:2]
    if camera is None:
        camera, _ = board.intrinsics([v for v, _ in found], width, height)
    seen, errors = zip(*(board.pose(v, camera) for v, _ in found), strict=True)
    hands = [transform(*kinematics.pose(q)) for _, q in found]
    carrier = hands if mount == "hand" else [np.linalg.inv(h) for h in hands]
    px = math.sqrt(float(np.mean(np.square(errors))))
    return Mounting(mount, hand_eye(carrier, seen), camera, px, len(found), len(taken))


class PoseTaker:
    """Takes a picture and the joints whenever it is told to, while the arm stands still.

    Args:
        robot: its topics.
        key: of its camera.
        transport: brings both.
        wait: lets so many seconds pass.

    Raises:
        ConfigError: a camera that the robot does not have.
    """

    def __init__(self, robot: RobotConfig, key: str, transport: Transport, wait: Callable[[float], None]) -> None:
        if key not in robot.cameras:
            raise ConfigError(f"the robot has no camera {key!r}. {nearest(key, robot.cameras)}")
        self._robot, self._key, self._wait = robot, key, wait
        self._frames: list[Image | CompressedImage] = []
        self._states: list[JointState] = []
        stream = robot.cameras[key]
        transport.subscribe(stream.topic, camera_message(stream), lambda m, _: self._frames.append(m))  # type: ignore[arg-type]
        transport.subscribe(robot.state.topic, JointState, self._take_state)

    def take(self, patience_s: float = 2.0) -> Taken:
        """Now: the next frame, and the joints around it.

        Raises:
            UserError: nothing comes, or the arm moves.
        """
        self._frames.clear()
        self._states.clear()
        waited = 0.0
        while (len(self._frames) < 2 or len(self._states) < 2) and waited < patience_s:
            self._wait(0.05)
            waited += 0.05
        for what, got, topic in (
            ("pictures", self._frames, self._robot.cameras[self._key].topic),
            ("joint states", self._states, self._robot.state.topic),
        ):
            if len(got) < 2:
                raise UserError(f"no {what} came on {topic} within {patience_s:g} s")
        q = np.array([self._places(m) for m in self._states])
        speed = float(np.abs(q[-1] - q[0]).max()) / max(waited, 0.05)
        if speed > _STILL:
            raise UserError(f"the arm moves with {speed:.3f} rad/s: let it stand still for a picture")
        try:
            picture = pixels(self._frames[-1])
        except DataError as e:
            raise UserError(str(e)) from None
        if picture.ndim != 3:
            raise UserError("this camera gives distances; a board is found in colour or grey pictures")
        return Taken(picture, q.mean(0))

    def _take_state(self, message: JointState, _received_ns: int) -> None:
        if set(self._robot.joints) <= set(message.name):
            self._states.append(message)

    def _places(self, message: JointState) -> np.ndarray:
        return message.position[[message.name.index(j) for j in self._robot.joints]]


def save_taken(folder: Path, taken: Sequence[Taken], joints: Sequence[str]) -> None:
    """Write pictures and ``poses.json``: what :func:`load_taken` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, t in enumerate(taken):
        name = f"pose_{i:03d}.png"
        cv2.imwrite(str(folder / name), t.picture[..., ::-1])
        rows.append({"picture": name, "joints": t.joints.tolist()})
    (folder / _FILE).write_text(json.dumps({"joints": list(joints), "poses": rows}, indent=1))


def load_taken(folder: Path, joints: Sequence[str]) -> list[Taken]:
    """Inverse of :func:`save_taken`; joints are mapped by name.

    Raises:
        UserError: files that are missing or damaged, or of another arm.
    """
    try:
        document = json.loads((folder / _FILE).read_text())
        names, rows = document["joints"], document["poses"]
        places = [names.index(j) for j in joints]
        out = []
        for row in rows:
            bgr = cv2.imread(str(folder / row["picture"]))
            if bgr is None:
                raise UserError(f"{folder / row['picture']} is missing, or no picture")
            out.append(Taken(bgr[..., ::-1].copy(), np.array(row["joints"], np.float64)[places]))
        return out
    except (OSError, KeyError, TypeError, ValueError, IndexError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"{folder / _FILE} is missing, damaged or of another arm: {e}") from None
