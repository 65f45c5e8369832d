r"""From an action chunk to joint points: once per chunk, open loop.

The policy, the critic and the guidance live in a task space; the arm takes joint positions. An
end-effector delta says where the tool is *sent*, not where it will be: the arm on which the data
were recorded lags behind its commands (:mod:`qsteer_ros.motion.servo`). The decoder chains target,
inverse kinematics and lag over the chunk and returns the positions that arm would have passed:

.. math::

    x_k = \mathrm{clip}(\mathrm{FK}(q_k) + \Delta_k), \quad
    u_k = \mathrm{IK}(x_k), \quad
    q_{k+1} = q_k + (1 - e^{-\Delta t/\tau})(u_k - q_k) + b

A tracking controller that is given these positions repeats the motion of the data. Without the lag
the same chunk asks for several times the distance.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.motion.kinematics import Kinematics, tool_down, yaw_of
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.motion.servo import ServoModel, covered
from qsteer_ros.types import Array, RobotState

#: A tool that is tilted further than this when the arm is taken over would be swung upright.
MOST_TILT_RAD = 0.1


class ActionDecoder(Protocol):
    """Turns a normalised chunk into joint points, given where the arm is."""

    def decode(self, chunk: NDArray[np.floating], state: RobotState) -> Array:
        """Joint points that the chunk means.

        Args:
            chunk: Normalised actions, (H, A), each in [-1, 1]; values outside are clipped.
            state: The measurement the chunk answers.

        Returns:
            (H, J + 1), rad. Row k (from 0) is due ``(k + 1) * control_dt_s`` after the state's
            stamp. The last column is the gripper joint's command.

        Raises:
            DataError: The chunk has the wrong shape, is not finite or cannot be reached.
        """
        ...

    def check_start(self, position: Array) -> None:
        """Refuse to begin where no chunk was ever meant to: the first motion would be a jump.

        Args:
            position: Measured, (J,), rad.

        Raises:
            DataError: The tool is not where, or not as, the actions suppose it to be.
        """
        ...


class EndEffectorDeltaDecoder:
    """Actions [dx, dy, dz, dyaw, dclosure] relative to the tool, which keeps pointing down.

    The target of each step is clipped to the robot file's workspace and its yaw wrapped to
    (-pi, pi]. The gripper's column is its *command*, predicted closure plus delta: it is a
    compliant device whose command leads its position while it squeezes.

    Source:
        OGBench 1.2.2, ``ManipSpaceEnv.set_control``.
    """

    def __init__(self, robot: RobotFile, kinematics: Kinematics, servo: ServoModel) -> None:
        """Check that the robot's actions are end-effector deltas.

        Raises:
            ConfigError: The robot file says otherwise.
        """
        if robot.action_meaning != "end_effector_delta" or len(robot.action_names) != 5:
            raise ConfigError(
                "EndEffectorDeltaDecoder needs 'action.meaning: end_effector_delta' and 5 action "
                f"names: robot '{robot.name}' has '{robot.action_meaning}' and "
                f"{list(robot.action_names)}. Choose the decoder with make_decoder."
            )
        self._robot = robot
        self._kinematics = kinematics
        self._servo = servo
        self._gripper_covered = float(covered(robot.gripper_tau_s, robot.control_dt_s))

    def decode(self, chunk: NDArray[np.floating], state: RobotState) -> Array:
        """Positions the arm of the training data would have passed; see :class:`ActionDecoder`."""
        return self.decode_with_targets(chunk, state)[0]

    def check_start(self, position: Array) -> None:
        """The tool points down and is within one action of the workspace."""
        robot = self._robot
        xyz, rotation = self._kinematics.forward(position)
        away = np.maximum(robot.workspace_lower - xyz, xyz - robot.workspace_upper)
        if np.any(away > robot.action_scale[:3]):
            raise DataError(
                f"the tool must start within one action of 'workspace': it is at "
                f"{np.round(xyz, 3).tolist()} m, {away.max():.3f} m outside. Move the arm into "
                "the workspace first."
            )
        turn = tool_down(yaw_of(rotation)).T @ rotation
        tilt = float(np.arccos(np.clip((np.trace(turn) - 1.0) / 2.0, -1.0, 1.0)))
        if tilt > MOST_TILT_RAD:
            raise DataError(
                f"the tool must start pointing down, within {MOST_TILT_RAD:g} rad: it is tilted "
                f"by {tilt:.2f}. Move the arm so that the tool points down first."
            )

    def decode_with_targets(
        self, chunk: NDArray[np.floating], state: RobotState
    ) -> tuple[Array, Array]:
        """Predicted positions (H, J + 1) and the joint targets u that lead to them, (H, J)."""
        robot = self._robot
        actions = check_chunk(chunk, robot) * robot.action_scale
        q = np.array(state.position, dtype=np.float64)
        closure = float(np.clip(state.gripper, 0.0, 1.0))
        positions = np.empty((len(actions), len(q) + 1))
        targets = np.empty((len(actions), len(q)))
        for step, action in enumerate(actions):
            xyz, rotation = self._kinematics.forward(q)
            target = np.clip(xyz + action[:3], robot.workspace_lower, robot.workspace_upper)
            down = tool_down(yaw_of(rotation) + action[3])
            targets[step] = self._kinematics.inverse(target, down, q)
            q = self._servo.predict(q, targets[step], robot.control_dt_s)
            command = float(np.clip(closure + action[4], 0.0, 1.0))
            closure += self._gripper_covered * (command - closure)
            positions[step, :-1] = q
            positions[step, -1] = command * robot.gripper_closed_rad
        return positions, targets


class JointDecoder:
    """Actions are absolute joint positions and closure, (J + 1), divided by the action scale."""

    def __init__(self, robot: RobotFile) -> None:
        """Check that the robot's actions are joint positions.

        Raises:
            ConfigError: The robot file says otherwise.
        """
        width = len(robot.joints) + 1
        if robot.action_meaning != "joint_position" or len(robot.action_names) != width:
            raise ConfigError(
                f"JointDecoder needs 'action.meaning: joint_position' and {width} action names: "
                f"robot '{robot.name}' has '{robot.action_meaning}' and "
                f"{list(robot.action_names)}. Choose the decoder with make_decoder."
            )
        self._robot = robot

    def decode(self, chunk: NDArray[np.floating], state: RobotState) -> Array:
        """The chunk itself in rad; see :class:`ActionDecoder`."""
        points = check_chunk(chunk, self._robot) * self._robot.action_scale
        points[:, -1] = np.clip(points[:, -1], 0.0, 1.0) * self._robot.gripper_closed_rad
        return points

    def check_start(self, position: Array) -> None:
        """Nothing: positions are absolute, and one too far away is refused by its speed."""


def make_decoder(robot: RobotFile, kinematics: Kinematics) -> ActionDecoder:
    """The decoder that the robot file's action meaning asks for, with its servo model."""
    if robot.action_meaning == "joint_position":
        return JointDecoder(robot)
    return EndEffectorDeltaDecoder(robot, kinematics, robot.servo)


def check_chunk(chunk: NDArray[np.floating], robot: RobotFile) -> Array:
    """The chunk as float64 clipped to [-1, 1], (H, A).

    Raises:
        DataError: Its shape does not fit the robot file, or a value is not finite.
    """
    actions = np.asarray(chunk, dtype=np.float64)
    width = len(robot.action_names)
    if actions.ndim != 2 or actions.shape[1] != width or len(actions) == 0:
        raise DataError(
            f"chunk must have shape (horizon, {width}): got {actions.shape}. "
            f"Use a policy trained for robot '{robot.name}'."
        )
    if not np.all(np.isfinite(actions)):
        step, dimension = np.argwhere(~np.isfinite(actions))[0]
        raise DataError(
            f"chunk must be finite: action {step}, '{robot.action_names[dimension]}' is "
            f"{actions[step, dimension]}. The policy or the guidance diverged; lower the weight."
        )
    return np.clip(actions, -1.0, 1.0)
