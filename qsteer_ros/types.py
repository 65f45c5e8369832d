"""The nouns shared by every room of the package. Standard library and numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.errors import DataError

Array = NDArray[np.float64]
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class RobotState:
    """What the arm's joints say at one stamp, in the joint order of the robot file.

    Attributes:
        stamp_ns: ROS time of the measurement, integer nanoseconds.
        position: Joint positions, (J,), rad.
        velocity: Joint velocities, (J,), rad/s.
        gripper: Closure of the gripper, 0 open to 1 closed.
        gripper_effort: Grip effort as a fraction of the robot file's full scale, 0 to 1.

    Raises:
        DataError: A shape is wrong or a value is not finite.
    """

    stamp_ns: int
    position: Array
    velocity: Array
    gripper: float
    gripper_effort: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no consumer may act on."""
        if self.position.ndim != 1 or self.position.shape != self.velocity.shape:
            raise DataError(
                "RobotState.position and .velocity must both have shape (joints,): got "
                f"{self.position.shape} and {self.velocity.shape}."
            )
        for name in ("position", "velocity", "gripper", "gripper_effort"):
            if not np.all(np.isfinite(getattr(self, name))):
                raise DataError(f"RobotState.{name} must be finite: got {getattr(self, name)}.")


@dataclass(frozen=True)
class Observation:
    """What the policy sees at one stamp.

    Attributes:
        stamp_ns: ROS time the observation speaks of: the stamp of its newest camera frame.
        images: Camera name -> (height, width, 3) uint8 RGB.
        robot: Joint measurement nearest to ``stamp_ns``.
        image_stamps_ns: Camera name -> stamp of its frame.
    """

    stamp_ns: int
    images: Mapping[str, Image]
    robot: RobotState
    image_stamps_ns: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse images that are not (height, width, 3) uint8."""
        for name, image in self.images.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise DataError(
                    f"image '{name}' must be (height, width, 3) uint8 RGB: got {image.shape} "
                    f"{image.dtype}."
                )


@dataclass(frozen=True)
class JointPath:
    """Joint points on a common time axis that ends at rest.

    Attributes:
        times_s: Time of each point after the path's start, (P,), strictly increasing, s.
        positions: (P, J), rad; the gripper, when it is a joint of the path, is the last column.
        velocities: (P, J), rad/s; the last row is zero.
    """

    times_s: Array
    positions: Array
    velocities: Array

    def __post_init__(self) -> None:
        """Refuse a path that a controller would refuse."""
        points = self.times_s.shape[0]
        if self.positions.shape != self.velocities.shape or self.positions.shape[0] != points:
            raise DataError(
                "JointPath needs positions and velocities of shape (points, joints) and as many "
                f"times: got {self.positions.shape}, {self.velocities.shape} and {points} times."
            )
        for name in ("times_s", "positions", "velocities"):
            if not np.all(np.isfinite(getattr(self, name))):
                raise DataError(f"JointPath.{name} must be finite.")
        if points == 0 or np.any(np.diff(self.times_s) <= 0.0):
            raise DataError("JointPath.times_s must be non-empty and strictly increasing.")
        if np.any(self.velocities[-1] != 0.0):
            raise DataError("JointPath must end at rest: its last velocities are not zero.")
