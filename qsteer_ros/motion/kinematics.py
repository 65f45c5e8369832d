"""Forward and inverse kinematics of the arm, on its URDF with Pinocchio."""

from __future__ import annotations

import numpy as np
import pinocchio as pin

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.types import Array

TOOL_DOWN: Array = np.diag([1.0, -1.0, -1.0])
"""Rotation of a tool that points straight down with yaw 0."""


class Kinematics:
    """Where the tool is, and which joints put it somewhere. Poses are in the URDF's root frame.

    One instance serves one thread: it computes in place.

    Attributes:
        joints: Joint names, in the order of every ``q``.

    Raises:
        ConfigError: The URDF cannot be read, or lacks a joint or the tool frame of the robot file.
    """

    def __init__(self, robot: RobotFile) -> None:
        self.joints = robot.joints
        try:
            model = pin.buildModelFromUrdf(str(robot.urdf))
        except ValueError as error:
            raise ConfigError(f"'{robot.urdf}' must be a URDF: {error}.") from error
        known = list(model.names)[1:]
        missing = [joint for joint in robot.joints if joint not in known]
        if missing:
            raise ConfigError(
                f"robot '{robot.name}' has joints {missing}, but {robot.urdf} has {known}. "
                "Fix 'joints' or 'urdf' in the robot file."
            )
        locked = [model.getJointId(name) for name in known if name not in robot.joints]
        self._model = pin.buildReducedModel(model, locked, pin.neutral(model))
        if self._model.nq != len(robot.joints) or self._model.nv != len(robot.joints):
            raise ConfigError(
                f"the joints of robot '{robot.name}' must be revolute with limits; {robot.urdf} "
                "has a continuous or floating one. Give it limits in the URDF."
            )
        if not self._model.existFrame(robot.tool_frame):
            raise ConfigError(
                f"'tool_frame' must be a link of {robot.urdf}: got '{robot.tool_frame}'. Links: "
                f"{sorted(f.name for f in self._model.frames if f.type == pin.FrameType.BODY)}."
            )
        self._data = self._model.createData()
        self._frame = self._model.getFrameId(robot.tool_frame)
        order = [self._model.joints[self._model.getJointId(j)].idx_q for j in robot.joints]
        self._order = np.asarray(order)  # column of each of our joints in Pinocchio's q

    def forward(self, q: Array) -> tuple[Array, Array]:
        """Pose of the tool.

        Args:
            q: Joint positions, (J,), rad.

        Returns:
            Position (3,), m, and rotation matrix (3, 3), both copies.
        """
        self._place(q)
        pose = self._data.oMf[self._frame]
        return pose.translation.copy(), pose.rotation.copy()

    def yaw(self, q: Array) -> float:
        """Rotation of the tool about the vertical, rad, in (-pi, pi]."""
        return yaw_of(self.forward(q)[1])

    def inverse(
        self,
        xyz: Array,
        rotation: Array,
        q_start: Array,
        *,
        max_iterations: int = 50,
        tolerance: float = 1e-6,
        max_step_rad: float = 0.7,
    ) -> Array:
        r"""Joints that put the tool at a pose, by damped least squares from ``q_start``.

        .. math:: q \leftarrow q + J^\top (J J^\top + \lambda^2 I)^{-1} e, \qquad
                  \lambda^2 = 10^{-3} \min(1, \|e\|^2)

        The damping vanishes with the error :math:`e` (position in m and rotation vector in rad,
        world axes), so the solution is exact and steps stay bounded near singularities. The
        solution is the branch reached from ``q_start``; joints are not wrapped.

        Args:
            xyz: Position, (3,), m.
            rotation: Rotation matrix, (3, 3).
            q_start: Where to start, (J,), rad. Not modified.
            max_iterations: Give up after this many.
            tolerance: Accepted error, m and rad.
            max_step_rad: Largest change of a joint in one iteration.

        Raises:
            DataError: The pose was not reached.
        """
        q = np.array(q_start, dtype=np.float64)
        error = np.full(6, np.inf)
        for _ in range(max_iterations + 1):
            self._place(q)
            pose = self._data.oMf[self._frame]
            error[:3] = xyz - pose.translation
            error[3:] = pin.log3(rotation @ pose.rotation.T)
            squared = float(error @ error)
            if squared <= tolerance**2:
                return q
            if not np.isfinite(squared):
                break
            jacobian = pin.computeFrameJacobian(
                self._model, self._data, self._to_pin(q), self._frame, pin.LOCAL_WORLD_ALIGNED
            )[:, self._order]
            damped = jacobian @ jacobian.T + 1e-3 * min(1.0, squared) * np.eye(6)
            step = jacobian.T @ np.linalg.solve(damped, error)
            q = q + step * min(1.0, max_step_rad / max(float(np.abs(step).max()), 1e-12))
        raise DataError(
            f"the tool must be able to reach {np.round(xyz, 3).tolist()} m: "
            f"{1e3 * float(np.linalg.norm(error[:3])):.1f} mm and "
            f"{float(np.linalg.norm(error[3:])):.3f} rad are left after {max_iterations} "
            "iterations. Check 'workspace' in the robot file."
        )

    def _place(self, q: Array) -> None:
        pin.framesForwardKinematics(self._model, self._data, self._to_pin(q))

    def _to_pin(self, q: Array) -> Array:
        placed = np.empty(len(self._order))
        placed[self._order] = q
        return placed


def yaw_of(rotation: Array) -> float:
    """Yaw of a rotation matrix (the z of its z-y-x angles), rad, in (-pi, pi]."""
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def tool_down(yaw: float) -> Array:
    """Rotation matrix of a tool that points straight down, turned by ``yaw``, (3, 3)."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]) @ TOOL_DOWN
