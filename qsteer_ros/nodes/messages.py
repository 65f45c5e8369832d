"""ROS messages to and from the package's own types: the only place that touches message fields."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from sensor_msgs.msg import CompressedImage, JointState
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import MultiArrayDimension, UInt8MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from qsteer_ros.errors import DataError
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.replay.images import decode_jpeg
from qsteer_ros.types import Array, Image, JointPath, RobotState

NS_PER_S = 1_000_000_000
#: Encoding -> channels and the order that makes them RGB.
_ENCODINGS = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}
OK, WARN, ERROR, STALE = (
    DiagnosticStatus.OK,
    DiagnosticStatus.WARN,
    DiagnosticStatus.ERROR,
    DiagnosticStatus.STALE,
)


def from_stamp(stamp: Time) -> int:
    """A message's stamp in integer nanoseconds."""
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)


def to_stamp(stamp_ns: int) -> Time:
    """Integer nanoseconds as a message's stamp."""
    seconds, nanoseconds = divmod(stamp_ns, NS_PER_S)
    return Time(sec=seconds, nanosec=nanoseconds)


def to_robot_state(message: JointState, robot: RobotFile) -> RobotState:
    """Joint measurement in the robot file's order, found by name; other joints are ignored.

    Raises:
        DataError: A joint is missing or named twice, an array is missing or too short, or a value
            is not finite. Nothing is ever filled in.
    """
    names = list(message.name)
    missing = [joint for joint in robot.path_joints if joint not in names]
    if missing:
        raise DataError(
            f"joint states must name {missing}: they name {sorted(names)}. Fix 'joints' or "
            "'gripper.joint' in the robot file, or the driver."
        )
    twice = [joint for joint in robot.path_joints if names.count(joint) > 1]
    if twice:
        raise DataError(f"joint states must name each joint once: {twice} found more often.")
    index = [names.index(joint) for joint in robot.path_joints]

    def column(field: str) -> Array:
        values = np.asarray(getattr(message, field), dtype=np.float64)
        if len(values) != len(names):
            raise DataError(
                f"joint states must carry a {field} for each of their {len(names)} joints: got "
                f"{len(values)}. Check the driver."
            )
        return values[index]

    position, velocity, effort = column("position"), column("velocity"), column("effort")
    return RobotState(
        stamp_ns=from_stamp(message.header.stamp),
        position=position[:-1],
        velocity=velocity[:-1],
        gripper=float(np.clip(position[-1] / robot.gripper_closed_rad, 0.0, 1.0)),
        gripper_effort=float(np.clip(abs(effort[-1]) / robot.effort_full_scale_n, 0.0, 1.0)),
    )


def to_image(message: ImageMessage | CompressedImage) -> Image:
    """A camera frame as (height, width, 3) uint8 RGB, a new array.

    Raises:
        DataError: The encoding is not supported, or sizes and data disagree, or it is damaged.
    """
    if isinstance(message, CompressedImage):
        if "jp" not in message.format.lower():
            raise DataError(
                f"compressed frames must be JPEG: got format '{message.format}'. Set the camera "
                "driver to JPEG, or 'transport: raw' in the robot file."
            )
        return decode_jpeg(memoryview(message.data))
    if message.encoding not in _ENCODINGS:
        raise DataError(
            f"raw frames must be one of {', '.join(sorted(_ENCODINGS))}: got "
            f"'{message.encoding}'. Change the camera driver's encoding."
        )
    channels, order = _ENCODINGS[message.encoding]
    row = message.width * channels
    if message.step < row or len(message.data) != message.step * message.height or not row:
        raise DataError(
            f"a {message.width}x{message.height} {message.encoding} frame with step "
            f"{message.step} must have {message.step * message.height} bytes and rows of at least "
            f"{row}: got {len(message.data)}. Check the camera driver."
        )
    rows = np.frombuffer(message.data, dtype=np.uint8).reshape(message.height, message.step)
    pixels = rows[:, :row].reshape(message.height, message.width, channels)
    return np.ascontiguousarray(pixels[:, :, list(order)])


def to_trajectory(path: JointPath, joints: Sequence[str], stamp_ns: int) -> JointTrajectory:
    """A path as a message for ``joint_trajectory_controller``.

    Args:
        path: (P, J) positions and velocities.
        joints: Names of its columns.
        stamp_ns: ROS time of the path's time 0.
    """
    message = JointTrajectory(joint_names=list(joints))
    message.header.stamp = to_stamp(stamp_ns)
    times_ns = np.round(path.times_s * NS_PER_S).astype(np.int64)
    for time_ns, position, velocity in zip(
        times_ns.tolist(), path.positions.tolist(), path.velocities.tolist(), strict=True
    ):
        seconds, nanoseconds = divmod(time_ns, NS_PER_S)
        message.points.append(
            JointTrajectoryPoint(
                positions=position,
                velocities=velocity,
                time_from_start=Duration(sec=seconds, nanosec=nanoseconds),
            )
        )
    return message


def from_trajectory(message: JointTrajectory) -> tuple[JointPath, tuple[str, ...], int]:
    """Path, names of its columns and stamp of what :func:`to_trajectory` made.

    Raises:
        DataError: It is not a path that ends at rest.
    """
    points = message.points
    times_ns = [p.time_from_start.sec * NS_PER_S + p.time_from_start.nanosec for p in points]
    try:
        path = JointPath(
            times_s=np.asarray(times_ns, dtype=np.float64) / NS_PER_S,
            positions=np.array([p.positions for p in points], dtype=np.float64),
            velocities=np.array([p.velocities for p in points], dtype=np.float64),
        )
    except ValueError as error:
        raise DataError(f"all points of a trajectory must be equally long: {error}.") from error
    return path, tuple(message.joint_names), from_stamp(message.header.stamp)


def to_bytes(data: bytes) -> UInt8MultiArray:
    """A block of bytes as a message."""
    message = UInt8MultiArray()
    message.layout.dim = [MultiArrayDimension(label="bytes", size=len(data), stride=len(data))]
    message.data = array("B", data)
    return message


def from_bytes(message: UInt8MultiArray) -> bytes:
    """The bytes that :func:`to_bytes` packed."""
    return bytes(message.data)


def to_diagnostics(
    stamp_ns: int,
    name: str,
    level: bytes,
    summary: str,
    values: Mapping[str, Any],
    *,
    hardware_id: str = "",
) -> DiagnosticArray:
    """One status as a message for ``/diagnostics``.

    Args:
        stamp_ns: ROS time.
        name: ``node: component``.
        level: ``OK``, ``WARN``, ``ERROR`` or ``STALE`` of this module.
        summary: One sentence for a person.
        values: Details; shown as texts.
        hardware_id: Which robot.
    """
    status = DiagnosticStatus(level=level, name=name, message=summary, hardware_id=hardware_id)
    status.values = [KeyValue(key=key, value=_text(value)) for key, value in values.items()]
    message = DiagnosticArray(status=[status])
    message.header.stamp = to_stamp(stamp_ns)
    return message


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
