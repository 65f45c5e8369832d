"""What a decision record gains on its way to the arm."""

from __future__ import annotations

import numpy as np

import qsteer_ros
from qsteer_ros.motion.controller import PlanReport
from qsteer_ros.nodes.policy_parameters import PolicyParameters
from qsteer_ros.nodes.policy_parts import Parts
from qsteer_ros.policies.recording import Decision
from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.types import JointPath, Observation


def with_path(
    decision: Decision,
    observation: Observation,
    path: JointPath,
    plan: PlanReport,
    parts: Parts,
    parameters: PolicyParameters,
) -> DecisionRecord:
    """The policy's record with what became of the chunk."""
    robot, limits = observation.robot, plan.limits
    return decision.record.extended(
        tensors={
            "robot_position": robot.position,
            "robot_velocity": robot.velocity,
            "robot_gripper": np.array([robot.gripper, robot.gripper_effort]),
            "points": plan.points,
            "path_times_s": path.times_s,
            "path_positions": path.positions,
            "path_velocities": path.velocities,
            "tracking_error_rad": plan.tracking_error_rad,
            "limit_velocity": limits.velocity,
            "limit_acceleration": limits.acceleration,
            "limit_position_excess_rad": limits.position_excess_rad,
        },
        meta={
            "execute_steps": parameters.execute_steps,
            "robot": parts.robot.name,
            "joints": list(parts.robot.path_joints),
            "points_skipped": plan.skipped,
            "shaped": plan.shaped,
            "over_limits": limits.exceeded,
            "package": qsteer_ros.__version__,
            "hashes": {**decision.record.meta["hashes"], "robot": parts.robot.hash},
        },
    )
