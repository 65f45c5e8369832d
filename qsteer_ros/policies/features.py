r"""The numbers a policy and a critic are given: 19 from the joints and 8 about the cube.

In order (``FEATURE_NAMES``), with :math:`c = (0.425, 0, 0)` m the middle of the table:

======= ==========================================================================
0-5     arm joint positions, rad
6-11    arm joint velocities, rad/s
12-14   pinch point, :math:`10\,(p - c)`
15-16   cosine and sine of its yaw
17      gripper closure (0 open, 1 closed) times 3
18      grip effort, fraction of full scale
19-21   cube, :math:`10\,(k - c)`
22-24   cube as seen from the pinch point, :math:`10\,(k - p)`
25-26   cosine and sine of 4 x the cube's yaw (it looks the same from its four sides)
======= ==========================================================================

The first 19 are measured. The last 8 come from a camera encoder, in training from the simulator.
The scales are those of OGBench's observation, so that every entry is of order one.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.types import Array, RobotState

Float32 = NDArray[np.float32]

TABLE_CENTRE_M = np.array([0.425, 0.0, 0.0])
LENGTH_SCALE = 10.0
GRIPPER_SCALE = 3.0

PROPRIO_NAMES = (
    *(f"joint_position_{j}" for j in range(6)),
    *(f"joint_velocity_{j}" for j in range(6)),
    "tool_x",
    "tool_y",
    "tool_z",
    "tool_cos_yaw",
    "tool_sin_yaw",
    "gripper",
    "effort",
)
CUBE_NAMES = (
    "cube_x",
    "cube_y",
    "cube_z",
    "cube_from_tool_x",
    "cube_from_tool_y",
    "cube_from_tool_z",
    "cube_cos_4yaw",
    "cube_sin_4yaw",
)
FEATURE_NAMES = PROPRIO_NAMES + CUBE_NAMES


class ToolKinematics(Protocol):
    """What the features need of an arm's kinematics."""

    def forward(self, position: Array) -> tuple[Array, Array]:
        """Position (3,), m, and rotation (3, 3) of the pinch point in the world."""
        ...

    def yaw(self, position: Array) -> float:
        """Yaw of the pinch point, rad."""
        ...


def proprioception(state: RobotState, kinematics: ToolKinematics) -> Float32:
    """The first 19 features of one measurement, (19,) float32."""
    tool_xyz, _ = kinematics.forward(state.position)
    row: Float32 = proprioception_rows(
        position=state.position[None],
        velocity=state.velocity[None],
        tool_xyz=tool_xyz[None],
        tool_yaw=np.array([kinematics.yaw(state.position)]),
        gripper=np.array([state.gripper]),
        effort=np.array([state.gripper_effort]),
    )[0]
    return row


def proprioception_rows(
    *,
    position: NDArray[np.floating],
    velocity: NDArray[np.floating],
    tool_xyz: NDArray[np.floating],
    tool_yaw: NDArray[np.floating],
    gripper: NDArray[np.floating],
    effort: NDArray[np.floating],
) -> Float32:
    """The first 19 features of N measurements.

    Args:
        position: Arm joints, (N, 6), rad.
        velocity: Arm joints, (N, 6), rad/s.
        tool_xyz: Pinch point in the world, (N, 3), m.
        tool_yaw: Its yaw, (N,), rad.
        gripper: Closure, (N,), 0 open to 1 closed.
        effort: Fraction of full scale, (N,).

    Returns:
        (N, 19) float32.
    """
    return np.concatenate(
        [
            position,
            velocity,
            (tool_xyz - TABLE_CENTRE_M) * LENGTH_SCALE,
            np.cos(tool_yaw)[:, None],
            np.sin(tool_yaw)[:, None],
            gripper[:, None] * GRIPPER_SCALE,
            effort[:, None],
        ],
        axis=1,
    ).astype(np.float32)


def with_cube(
    proprio: Float32,
    cube_xyz: NDArray[np.floating],
    cos_sin_4yaw: NDArray[np.floating],
) -> Float32:
    """All 27 features from the measured ones and a cube pose.

    Args:
        proprio: (N, 19).
        cube_xyz: Cube in the world, (N, 3), m.
        cos_sin_4yaw: (N, 2).
    """
    scaled = (cube_xyz - TABLE_CENTRE_M) * LENGTH_SCALE
    return np.concatenate(
        [proprio, scaled, scaled - proprio[:, 12:15], cos_sin_4yaw], axis=1
    ).astype(np.float32)


def teacher_features(
    proprio: Float32, cube_xyz: NDArray[np.floating], cube_yaw: NDArray[np.floating]
) -> Float32:
    """All 27 features from the true cube pose: what an encoder is trained to see, (N, 27).

    Args:
        proprio: (N, 19).
        cube_xyz: (N, 3), m.
        cube_yaw: (N,), rad, any multiple of a quarter turn added.
    """
    four = 4.0 * cube_yaw
    return with_cube(proprio, cube_xyz, np.stack([np.cos(four), np.sin(four)], axis=1))
