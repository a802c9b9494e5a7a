"""The twin's sensors: measurements with noise and offsets, on their way for as long as the settings say."""

from __future__ import annotations

import heapq

import cv2
import numpy as np

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import axis_angle_to_quat, matrix_to_quat, quat_multiply, rot6d_to_matrix
from visuomotor.sim2real.messages import (
    CompressedImage,
    FloatArray,
    Image,
    JointState,
    Message,
    Pose,
    Transforms,
)
from visuomotor.sim2real.robots.config import FIELD_SIZES, CameraStream, GripperConfig, RobotConfig, ValueStream
from visuomotor.sim2real.transports.base import Publisher
from visuomotor.sim2real.twin.config import TwinConfig

__all__ = ["Mail", "Sensors", "opening_of"]

_SPARE = "spare_joint"  # a joint of something else in the same message, as grippers and bases are on real robots


class Mail:
    """Messages on their way: each leaves when it is due, in the order of those times."""

    def __init__(self) -> None:
        self._queue: list[tuple[int, int, Publisher[Message], Message]] = []
        self._count = 0

    def put(self, due_ns: int, publisher: Publisher[Message], message: Message) -> None:
        """Send ``message`` at ``due_ns``."""
        self._count += 1
        heapq.heappush(self._queue, (due_ns, self._count, publisher, message))

    def send(self, now_ns: int) -> None:
        """Publish what is due."""
        while self._queue and self._queue[0][0] <= now_ns:
            _, _, publisher, message = heapq.heappop(self._queue)
            publisher.publish(message)

    def clear(self) -> None:
        """Nothing of the last episode arrives in the next."""
        self._queue.clear()


class Sensors:
    """From what is true to messages of what is measured.

    Args:
        robot: topics, names and frames.
        config: noise, offsets, losses.
        keys: components of each value that the task observes.

    Attributes:
        offset: of the encoders ``[n]``: measured minus true position [rad].
    """

    def __init__(self, robot: RobotConfig, config: TwinConfig, keys: dict[str, int]) -> None:
        self._robot, self._config, self._noise = robot, config, config.noise
        fixed = np.random.default_rng([config.seed, 0])
        self.offset = config.encoder_offset * fixed.standard_normal(len(robot.joints))
        names = [*robot.joints, *([robot.gripper.joint] if robot.gripper and robot.gripper.joint else []), _SPARE]
        self._order = fixed.permutation(len(names))
        if (self._order[: len(robot.joints)] == np.arange(len(robot.joints))).all():
            self._order = self._order[::-1]  # never the order of the arm: nobody may get by without the names
        self._names = tuple(names[i] for i in self._order)
        self._random = fixed
        for key, stream in robot.values.items():
            if key in keys:
                _check_size(key, stream, keys[key])

    def begin(self, seed: int) -> None:
        """The numbers of an episode are a function of its seed."""
        self._random = np.random.default_rng([self._config.seed, 1, seed])

    def lost(self) -> bool:
        """Whether a message is lost."""
        return self._config.drop > 0 and bool(self._random.random() < self._config.drop)

    def joints(self, q: np.ndarray, v: np.ndarray, opening: float, stamp_ns: int) -> JointState:
        """Of positions and velocities ``[n]`` of the arm, and the gripper's opening."""
        c, draw = self._config, self._random.standard_normal
        n = len(q)
        measured = q + self.offset + self._noise * c.joint_noise * draw(n)
        rates = v + self._noise * c.velocity_noise * draw(n)
        g = self._robot.gripper
        hand = [] if g is None or not g.joint else [g.closed + opening * (g.opened - g.closed)]
        position = np.concatenate([measured, hand, [0.0]])
        velocity = np.concatenate([rates, np.zeros(len(hand) + 1)])
        order = self._order
        return JointState(stamp_ns=stamp_ns, name=self._names, position=position[order], velocity=velocity[order])

    def value(self, stream: ValueStream, value: np.ndarray, stamp_ns: int) -> Message:
        """What an estimator would publish of an observation ``[k]``."""
        noise, draw = self._noise * self._config.position_noise, self._random.standard_normal
        if stream.type == "numbers":
            return FloatArray(data=value + noise * draw(len(value)))
        position, q_wxyz = _pose_of(stream, value)
        turn = axis_angle_to_quat(self._noise * self._config.turn_noise / np.sqrt(3.0) * draw(3))
        q = quat_multiply(turn, q_wxyz)
        pose = Pose(
            stamp_ns=stamp_ns, frame_id=stream.frame, position=position + noise * draw(3), q_xyzw=q[[1, 2, 3, 0]]
        )
        return pose if stream.type == "pose" else Transforms(poses=(pose,), children=(stream.child,))

    def picture(self, stream: CameraStream, key: str, rgb: np.ndarray, stamp_ns: int) -> Message:
        """A camera's frame from uint8 ``[H, W, 3]``."""
        if deviation := self._noise * self._config.picture_noise:
            grain = deviation * self._random.standard_normal((*rgb.shape[:2], 1), dtype=np.float32)
            rgb = np.clip(np.rint(rgb + grain), 0, 255).astype(np.uint8)
        if stream.compressed:
            _, data = cv2.imencode(".jpg", rgb[..., ::-1])
            return CompressedImage(stamp_ns=stamp_ns, frame_id=key, format="jpeg", data=data.reshape(-1))
        encoding = self._config.encoding
        data = rgb if encoding == "rgb8" else rgb[..., ::-1] if encoding == "bgr8" else _grey(rgb)
        height, width = rgb.shape[:2]
        step = width * (1 if encoding == "mono8" else 3)
        return Image(
            stamp_ns=stamp_ns, frame_id=key, height=height, width=width, encoding=encoding, step=step,
            data=np.ascontiguousarray(data).reshape(-1),
        )  # fmt: skip


def opening_of(gripper: GripperConfig, command: float) -> float:
    """Opening 0..1 that a commanded value means."""
    span = gripper.command_opened - gripper.command_closed
    return float(np.clip((command - gripper.command_closed) / span, 0.0, 1.0))


def _grey(rgb: np.ndarray) -> np.ndarray:
    grey: np.ndarray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return grey


def _check_size(key: str, stream: ValueStream, size: int) -> None:
    """Refuse a stream that the twin cannot publish the task's observation as.

    Raises:
        ConfigError: a type other than numbers, pose and transform, or one that does not hold the observation.
    """
    if stream.type not in ("numbers", "pose", "transform"):
        raise ConfigError(f"values.{key}: the twin has no estimator of type {stream.type!r}; give numbers or pose")
    expected = size if stream.type == "numbers" else sum(FIELD_SIZES[f] for f in stream.fields)
    if expected != size or (stream.type != "numbers" and stream.fields[0] != "position"):
        raise ConfigError(
            f"values.{key}: the task observes {size} numbers, a {stream.type} of {', '.join(stream.fields)} has "
            f"{expected}; give type=numbers, or the fields that make up the observation, position first"
        )


def _pose_of(stream: ValueStream, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position ``[3]`` and ``q_wxyz [4]`` in an observation of a pose's fields, end to end."""
    position, q = value[:3], np.array([1.0, 0.0, 0.0, 0.0])
    start = 0
    for name in stream.fields:
        part = value[start : start + FIELD_SIZES[name]]
        start += FIELD_SIZES[name]
        if name == "q_wxyz":
            q = part
        elif name == "q_xyzw":
            q = part[[3, 0, 1, 2]]
        elif name == "rot6d":
            q = matrix_to_quat(rot6d_to_matrix(part))
    return position, q
