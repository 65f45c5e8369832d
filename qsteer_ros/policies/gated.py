"""Whether a critic may steer a policy on a robot: what ``gate.json`` beside it says."""

from __future__ import annotations

from pathlib import Path

from qsteer_ros import checkpoints, resources
from qsteer_ros.critics.gate import Gate
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.motion.robot import RobotFile


def check_gated(
    folder: str | Path, *, critic: str, policy: str, robot: str, encoder: str | None = None
) -> None:
    """Refuse a critic that has not passed the gate for these parts.

    Args:
        folder: The critic's checkpoint, as the user wrote it.
        critic: Hash of the critic.
        policy: Hash of the policy.
        robot: Hash of the robot file.
        encoder: Hash of the encoder; None does not ask.

    Raises:
        ConfigError: It has not been examined, not with these parts, or it did not pass.
        DataError: ``gate.json`` is damaged or was changed by hand.
    """
    place = resources.find(folder)
    found = Gate.load(place, critic=critic, policy=policy, robot=robot, encoder=encoder)
    found.check_passed(folder)


def why_ungated(
    folder: str | Path, *, policy: str | Path, robot: str | Path, encoder: str | Path | None
) -> str:
    """Why this critic may not steer on an arm, in one sentence; empty when it may.

    Args:
        folder: The critic's checkpoint.
        policy: Checkpoint folder.
        robot: Robot file.
        encoder: Checkpoint folder; None for features from elsewhere.

    Raises:
        ConfigError: One of them is missing or of another kind.
        DataError: A checkpoint is damaged.
    """
    hashes = {
        "critic": checkpoints.load(resources.find(folder), kind="critic").hash,
        "policy": checkpoints.load(resources.find(policy), kind="policy").hash,
        "robot": RobotFile.load(robot).hash,
        "encoder": None
        if encoder is None
        else checkpoints.load(resources.find(encoder), kind="encoder").hash,
    }
    try:
        check_gated(folder, **hashes)  # type: ignore[arg-type]
    except (ConfigError, DataError) as error:
        return str(error)
    return ""
