r"""A simulated arm that behaves like one with a trajectory controller, and its task.

Time is an integer number of nanoseconds that only grows: a reset changes the scene, not the clock.
Every 2 ms the follower says where each joint should be, :math:`r`, and how fast it should move,
:math:`\dot r`. The model's arm actuators are position servos with damping,
:math:`k_p (u - q) - k_v \dot q`, which by themselves lag by :math:`\tau = k_v / k_p` (50 to
200 ms) and sag under gravity. The command

.. math:: u = r + \tau \dot r + b(q, \dot q) / k_p

with :math:`b` the joint torque that gravity and motion ask for, turns them into
:math:`k_p (r - q) + k_v (\dot r - \dot q) + b`: an arm that tracks what it is sent, as a real one
does. :math:`k_p`, :math:`k_v` and :math:`b` are read from the compiled model.
"""

from __future__ import annotations

import numpy as np

from qsteer_ros.errors import ConfigError
from qsteer_ros.sim.follower import Trajectory, TrajectoryFollower
from qsteer_ros.sim.goals import SUCCESS_DISTANCE_M, Goal, find_goal
from qsteer_ros.sim.scene import (
    CAMERAS,
    GRIPPER_CLOSED_RAD,
    GRIPPER_FULL_SCALE_N,
    PHYSICS_DT_S,
    Scene,
)
from qsteer_ros.types import Array, Image, JointPath, RobotState

# After the scene, which chooses the GL library before MuJoCo is imported.
import mujoco  # isort: skip

PHYSICS_DT_NS = round(PHYSICS_DT_S * 1e9)
CONTROL_DT_NS = 50_000_000
ARM_JOINTS = (
    "shoulder_pan_joint",
    "shoulder_lift_joint",
    "elbow_joint",
    "wrist_1_joint",
    "wrist_2_joint",
    "wrist_3_joint",
)
GRIPPER_JOINT = "robotiq_85_left_knuckle_joint"
JOINTS = (*ARM_JOINTS, GRIPPER_JOINT)
#: Full scale of the gripper actuator's command.
_GRIPPER_COMMAND_CLOSED = 255.0


class World:
    """The simulated arm, its cube and its clock.

    Not thread-safe; pictures may be taken in another thread through :attr:`scene` from a copy of
    :attr:`qpos`, as long as all of them are taken in that one thread.

    Args:
        goal: Number of the goal, see :mod:`qsteer_ros.sim.goals`.
        seed: Decides, with the goal, the whole initial state.

    Attributes:
        scene: The MuJoCo scene.
        follower: Says where each joint should be; joint order :data:`JOINTS`.
        goal: The goal of the running episode.
        seed: Its seed.
        time_ns: Simulated time since the world was made; a multiple of the physics step.
    """

    def __init__(self, *, goal: int = 1, seed: int = 0) -> None:
        self.scene = Scene(mode="task", seed=0)
        self.follower = TrajectoryFollower(JOINTS)
        self.time_ns = 0
        self._dofs = self.scene.model.jnt_dofadr[self.scene.env._arm_joint_ids]
        self._gripper_dof = int(
            self.scene.model.jnt_dofadr[self.scene.env._gripper_opening_joint_id]
        )
        self._pad = self.scene.model.body("ur5e/robotiq/right_pad").id
        arm = self.scene.arm_actuators
        self._stiffness = self.scene.model.actuator_gainprm[arm, 0].copy()
        self._lag_s = -self.scene.model.actuator_biasprm[arm, 2] / self._stiffness
        self.goal: Goal
        self.seed: int
        self.reset(goal=goal, seed=seed)

    def reset(self, *, goal: int, seed: int) -> RobotState:
        """Put cube and arm where the goal's episode ``seed`` starts, at rest; hold the arm there.

        The draw is OGBench's: tool within a box above the table and at any yaw, cube within 1 cm
        of the task's start and at any yaw. The same goal and seed give the same state, bit for
        bit, whatever happened before. The clock goes on.

        Raises:
            ConfigError: There is no such goal, or the seed is negative.
        """
        found = find_goal(goal)
        if seed < 0:
            raise ConfigError(f"seed must be 0 or more: got {seed}.")
        scene, data = self.scene, self.scene.data
        scene.env.reset(seed=seed, options={"task_id": found.task_id})
        qpos, target = data.qpos.copy(), (data.mocap_pos.copy(), data.mocap_quat.copy())
        # OGBench takes unseeded random steps on the way; nothing of them may stay behind.
        mujoco.mj_resetData(scene.model, data)
        data.mocap_pos[:], data.mocap_quat[:] = target
        scene.set_state(qpos)
        self.goal, self.seed = found, seed
        self.hold()
        self._command()
        return self.robot_state()

    def hold(self) -> None:
        """Drop any trajectory and stay where the joints are now."""
        self.follower.hold(self.joint_positions, self.time_ns)

    def accept(self, path: JointPath, stamp_ns: int) -> str | None:
        """Follow a path over :data:`JOINTS` whose time 0 is ``stamp_ns`` of the world's clock.

        Returns:
            None, or why the follower refuses it; then the running trajectory goes on.
        """
        return self.accept_trajectory(Trajectory.from_path(path, JOINTS, stamp_ns))

    def accept_trajectory(self, trajectory: Trajectory) -> str | None:
        """Follow a trajectory as a message would give it; returns as :meth:`accept` does."""
        return self.follower.accept(trajectory, self.time_ns)

    def advance(self, duration_ns: int) -> None:
        """Let ``duration_ns`` pass.

        Raises:
            ConfigError: The duration is negative or not a multiple of the 2 ms physics step.
        """
        steps, rest = divmod(duration_ns, PHYSICS_DT_NS)
        if steps < 0 or rest:
            raise ConfigError(
                f"a duration must be a non-negative multiple of {PHYSICS_DT_NS} ns: "
                f"got {duration_ns}."
            )
        for _ in range(steps):
            self.time_ns += PHYSICS_DT_NS
            self._command()
            mujoco.mj_step(self.scene.model, self.scene.data)

    def _command(self) -> None:
        """Write the actuator commands for the step that ends at the current time."""
        scene, data = self.scene, self.scene.data
        position, velocity = self.follower.sample(self.time_ns)
        torque = data.qfrc_bias[self._dofs] - data.qfrc_passive[self._dofs]
        data.ctrl[scene.arm_actuators] = (
            position[:-1] + self._lag_s * velocity[:-1] + torque / self._stiffness
        )
        closure = min(max(position[-1] / GRIPPER_CLOSED_RAD, 0.0), 1.0)
        data.ctrl[scene.gripper_actuator] = _GRIPPER_COMMAND_CLOSED * closure

    def robot_state(self) -> RobotState:
        """What the arm's own sensors say now; arm joints only, the gripper as closure."""
        effort_n = self.grip_force_n()
        return RobotState(
            stamp_ns=self.time_ns,
            position=self.joint_positions[:-1],
            velocity=self.joint_velocities[:-1],
            gripper=float(np.clip(self.joint_positions[-1] / GRIPPER_CLOSED_RAD, 0.0, 1.0)),
            gripper_effort=float(np.clip(effort_n / GRIPPER_FULL_SCALE_N, 0.0, 1.0)),
        )

    @property
    def joint_positions(self) -> Array:
        """Measured positions in the order of :data:`JOINTS`, (7,), rad."""
        qpos = self.scene.data.qpos
        return np.append(qpos[self.scene.arm_qpos], qpos[self.scene.gripper_qpos])

    @property
    def joint_velocities(self) -> Array:
        """Measured velocities in the order of :data:`JOINTS`, (7,), rad/s."""
        qvel = self.scene.data.qvel
        return np.append(qvel[self._dofs], qvel[self._gripper_dof])

    def joint_efforts(self) -> Array:
        """Actuator torques of the arm joints in N m and the grip force in N, (7,)."""
        return np.append(self.scene.data.qfrc_actuator[self._dofs], self.grip_force_n())

    def grip_force_n(self) -> float:
        """Contact force on the right finger pad, 0 without contact.

        Source: OGBench's ``gripper_contact`` is this divided by 50, clipped to [0, 1]. It is the
        norm of MuJoCo's six-component contact force, so it contains a small torque part.
        """
        mujoco.mj_rnePostConstraint(self.scene.model, self.scene.data)
        return float(np.linalg.norm(self.scene.data.cfrc_ext[self._pad]))

    @property
    def qpos(self) -> Array:
        """A copy of the whole simulator state (nq,), from which pictures are taken."""
        return np.array(self.scene.data.qpos, dtype=np.float64)

    def images(self) -> dict[str, Image]:
        """One picture of now per camera, (height, width, 3) uint8 RGB."""
        qpos = self.qpos
        return {camera: self.scene.render(camera, qpos) for camera in CAMERAS}

    @property
    def success(self) -> bool:
        """Whether the cube is within 4 cm of its goal now; not latched, it may leave again."""
        data = self.scene.data
        distance_m = np.linalg.norm(data.qpos[self.scene.cube_qpos][:3] - data.mocap_pos[0])
        return bool(distance_m <= SUCCESS_DISTANCE_M)

    @property
    def reward(self) -> float:
        """Reward of the 50 ms control step that ends now: 0 with the cube at its goal, else -1."""
        return 0.0 if self.success else -1.0

    def privileged_cube_pose(self) -> Array:
        """True pose of the cube: position in m and quaternion (w, x, y, z), (7,).

        No sensor of a real arm knows it. For training labels and for judging, never for acting.
        """
        return np.array(self.scene.data.qpos[self.scene.cube_qpos], dtype=np.float64)

    def close(self) -> None:
        """Free the GL contexts, in the thread that took the pictures."""
        self.scene.close()
