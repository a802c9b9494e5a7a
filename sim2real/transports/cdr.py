"""Messages to bytes and back, for ROS 2 (XCDR1) and ROS 1: which fields each type has, in order."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, TypeVar, cast

from visuomotor.sim2real import messages as m
from visuomotor.sim2real.transports.buffers import Bytes, CdrError, Decoder, Encoder

__all__ = ["CdrError", "decode", "encode"]

M = TypeVar("M", bound=m.Message)


def _put_joint_state(out: Encoder, message: m.JointState) -> None:
    out.header(message)
    out.strings(message.name)
    for values in (message.position, message.velocity, message.effort):
        out.array(values)


def _get_joint_state(data: Decoder) -> m.JointState:
    header = data.header()
    return m.JointState(
        name=data.strings(), position=data.array(), velocity=data.array(), effort=data.array(), **header
    )


def _put_image(out: Encoder, message: m.Image) -> None:
    out.header(message)
    out.uint(message.height)
    out.uint(message.width)
    out.string(message.encoding)
    out.boolean(message.is_bigendian)
    out.uint(message.step)
    out.array(message.data, "u1")


def _get_image(data: Decoder) -> m.Image:
    header = data.header()
    return m.Image(
        height=data.uint(), width=data.uint(), encoding=data.string(), is_bigendian=data.boolean(), step=data.uint(),
        data=data.array("u1"), **header,
    )  # fmt: skip


def _put_compressed(out: Encoder, message: m.CompressedImage) -> None:
    out.header(message)
    out.string(message.format)
    out.array(message.data, "u1")


def _get_compressed(data: Decoder) -> m.CompressedImage:
    header = data.header()
    return m.CompressedImage(format=data.string(), data=data.array("u1"), **header)


def _put_pose(out: Encoder, message: m.Pose) -> None:
    out.header(message)
    out.vector(message.position, 3)
    out.vector(message.q_xyzw, 4)


def _get_pose(data: Decoder) -> m.Pose:
    header = data.header()
    return m.Pose(position=data.vector(3), q_xyzw=data.vector(4), **header)


def _put_twist(out: Encoder, message: m.Twist) -> None:
    out.header(message)
    out.vector(message.linear, 3)
    out.vector(message.angular, 3)


def _get_twist(data: Decoder) -> m.Twist:
    header = data.header()
    return m.Twist(linear=data.vector(3), angular=data.vector(3), **header)


def _put_wrench(out: Encoder, message: m.Wrench) -> None:
    out.header(message)
    out.vector(message.force, 3)
    out.vector(message.torque, 3)


def _get_wrench(data: Decoder) -> m.Wrench:
    header = data.header()
    return m.Wrench(force=data.vector(3), torque=data.vector(3), **header)


def _put_floats(out: Encoder, message: m.FloatArray) -> None:
    out.uint(0)  # no dimensions
    out.uint(0)  # offset
    out.array(message.data)


def _get_floats(data: Decoder) -> m.FloatArray:
    for _ in range(data.length(12)):
        data.string()
        data.uint()
        data.uint()
    offset = data.uint()
    return m.FloatArray(data=data.array()[offset:])


def _put_trajectory(out: Encoder, message: m.JointTrajectory) -> None:
    out.header(message)
    out.strings(message.joint_names)
    out.uint(len(message.points))
    for point in message.points:
        for values in (point.positions, point.velocities, point.accelerations):
            out.array(values)
        out.uint(0)  # effort
        out.duration(point.time_from_start_ns)


def _get_trajectory(data: Decoder) -> m.JointTrajectory:
    header, names, points = data.header(), data.strings(), []
    for _ in range(data.length(24)):
        positions, velocities, accelerations, _effort = (data.array() for _ in range(4))
        points.append(
            m.TrajectoryPoint(
                time_from_start_ns=data.duration(), positions=positions, velocities=velocities,
                accelerations=accelerations,
            )
        )  # fmt: skip
    return m.JointTrajectory(joint_names=names, points=tuple(points), **header)


def _put_command(out: Encoder, message: m.JointCommand) -> None:
    out.string(message.name)
    out.array(message.command, "<f4")


def _put_transforms(out: Encoder, message: m.Transforms) -> None:
    out.uint(len(message.poses))
    for pose, child in zip(message.poses, message.children, strict=True):
        out.header(pose)
        out.string(child)
        out.vector(pose.position, 3)
        out.vector(pose.q_xyzw, 4)


def _get_transforms(data: Decoder) -> m.Transforms:
    poses, children = [], []
    for _ in range(data.length(72)):
        header = data.header()
        children.append(data.string())
        poses.append(m.Pose(position=data.vector(3), q_xyzw=data.vector(4), **header))
    return m.Transforms(poses=tuple(poses), children=tuple(children))


_CODECS: dict[type[m.Message], tuple[Callable[[Encoder, Any], None], Callable[[Decoder], m.Message]]] = {
    m.JointState: (_put_joint_state, _get_joint_state),
    m.Image: (_put_image, _get_image),
    m.CompressedImage: (_put_compressed, _get_compressed),
    m.Pose: (_put_pose, _get_pose),
    m.Twist: (_put_twist, _get_twist),
    m.Wrench: (_put_wrench, _get_wrench),
    m.FloatArray: (_put_floats, _get_floats),
    m.Boolean: (lambda out, value: out.boolean(value.data), lambda data: m.Boolean(data=data.boolean())),
    m.Text: (lambda out, value: out.string(value.data), lambda data: m.Text(data=data.string())),
    m.JointTrajectory: (_put_trajectory, _get_trajectory),
    m.JointCommand: (_put_command, lambda data: m.JointCommand(name=data.string(), command=data.array("f4"))),
    m.Transforms: (_put_transforms, _get_transforms),
}


def encode(message: m.Message, *, multiple: int = 1, ros1: bool = False) -> bytes:
    """The message's bytes, filled up with zeros to a multiple of ``multiple``.

    Raises:
        CdrError: a value does not fit: an array of the wrong shape, a time before 1901 or after 2038.
    """
    out = Encoder(ros1=ros1)
    try:
        _CODECS[type(message)][0](out, message)
    except CdrError:
        raise
    except (struct.error, ValueError) as error:  # a number out of its range, text that is no Unicode
        raise CdrError(f"{type(message).__name__} does not fit into its type: {error}") from None
    return out.finish(multiple)


def decode(kind: type[M], data: Bytes, *, ros1: bool = False) -> M:
    """The message in these bytes; what follows it is ignored (Fast CDR pads).

    Raises:
        CdrError: these bytes are no such message.
    """
    decoder = Decoder(data, ros1=ros1)
    try:
        return cast(M, _CODECS[kind][1](decoder))
    except CdrError:
        raise
    except ValueError as error:  # of the message's own check: arrays that contradict each other
        raise CdrError(str(error)) from None
