"""Transitions from logged episodes alone: pictures and joints through the encoder."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from qsteer_ros import resources
from qsteer_ros.errors import ConfigError
from qsteer_ros.interface import Interface
from qsteer_ros.learning.settings import ChunkSource
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.motion.kinematics import Kinematics
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.policies.extractors import CameraExtractor, load_camera_extractor
from qsteer_ros.policies.features import Float32, proprioception_rows
from qsteer_ros.replay.steps import EpisodeSteps
from qsteer_ros.replay.transitions import load_transitions

ROWS_AT_ONCE = 64
SHOWN = 5
"""Episodes left out that are named on the terminal; the checkpoint names all."""


def logged_transitions(settings: ChunkSource, *, goal: int | None, discount: float) -> Transitions:
    """Windows of logged episodes, with the features the encoder sees.

    The simulator's state is not read: a log of a real arm serves as well.

    Args:
        settings: ``episodes``: an episode, or a folder of episodes; ``encoder``: checkpoint whose
            hash is written into the critic and checked when both are loaded; ``robot``: robot
            file with the arm's kinematics; ``horizon``.
        goal: Only episodes of this goal; None: all.
        discount: gamma, per control step.

    Raises:
        ConfigError: The folder, the encoder or the robot file is missing, or they do not fit.
        DataError: No episode of this goal can be used, the message says why; or episodes are of
            policies with different chunks. Some that cannot be used among others are left out,
            said and recorded.
    """
    robot_file = RobotFile.load(settings.robot)
    kinematics = Kinematics(robot_file)
    eyes = load_camera_extractor(resources.find(settings.encoder), robot_file)
    interface = interface_of(
        robot_file,
        horizon=settings.horizon,
        feature_names=eyes.feature_names,
        encoder_hash=eyes.hash,
    )

    def features(steps: EpisodeSteps) -> NDArray[np.floating]:
        check_joints(steps, robot_file)
        return episode_features(steps, eyes, kinematics)

    with tqdm(desc="episodes", unit="window") as bar:
        logged = load_transitions(
            settings.episodes,
            horizon=settings.horizon,
            discount=discount,
            features=features,
            goal=goal,
            on_episode=bar.update,
        )
    return Transitions(
        features=logged.features,
        chunk=logged.chunk,
        reward=logged.reward,
        bootstrap=logged.bootstrap,
        next_features=logged.next_features,
        rewards=logged.rewards,
        ended=logged.ended,
        next_chunk=logged.next_chunk,
        next_valid=logged.next_valid,
        mc_return=logged.mc_return,
        truncated=logged.truncated,
        success=logged.success,
        episode=logged.episode,
        interface=interface,
        data_hash=logged.hash,
        episodes=tuple(str(info.bag["sha256"]) for info in logged.episodes),
        left_out=left_out(
            settings.episodes, [(f.name, why) for f, why in logged.skipped], len(logged.episodes)
        ),
    )


def left_out(store: str, skipped: Sequence[tuple[str, str]], used: int) -> tuple[str, ...]:
    """Say which episodes are not learned from; one line per episode for the checkpoint.

    Args:
        store: Where they are.
        skipped: Name and reason of each.
        used: How many are learned from.
    """
    lines = tuple(f"{name}: {reason}" for name, reason in skipped)
    if lines:
        more = "" if len(lines) <= SHOWN else f"; and {len(lines) - SHOWN} more"
        logging.getLogger(__name__).warning(
            "%d of %d episodes in '%s' are left out: %s%s. The checkpoint lists them as left_out.",
            len(lines), len(lines) + used, store, "; ".join(lines[:SHOWN]), more,
        )  # fmt: skip
    return lines


def interface_of(
    robot: RobotFile, *, horizon: int, feature_names: tuple[str, ...], encoder_hash: str
) -> Interface:
    """The space of policies and critics that are trained from a robot's episodes."""
    return Interface(
        horizon=horizon,
        action_names=tuple(robot.action_names),
        action_scale=tuple(float(scale) for scale in robot.action_scale),
        feature_names=feature_names,
        control_dt_s=robot.control_dt_s,
        encoder_hash=encoder_hash,
    )


def check_joints(steps: EpisodeSteps, robot: RobotFile) -> None:
    """Refuse an episode of another arm.

    Raises:
        ConfigError: Its joints are not the robot's.
    """
    if tuple(steps.info.robot["joints"]) != robot.joints:
        raise ConfigError(
            f"robot '{robot.name}' must have the joints of the episodes: "
            f"{steps.folder.name} was recorded with {steps.info.robot['joints']}. "
            "Give the robot file it was recorded with: robot=FILE."
        )


def episode_proprio(steps: EpisodeSteps, kinematics: Kinematics) -> Float32:
    """The 19 measured features in every row of an episode, (N, 19)."""
    poses = [kinematics.forward(position)[0] for position in steps.position]
    yaws = [kinematics.yaw(position) for position in steps.position]
    return proprioception_rows(
        position=steps.position,
        velocity=steps.velocity,
        tool_xyz=np.stack(poses),
        tool_yaw=np.array(yaws),
        gripper=steps.gripper,
        effort=steps.gripper_effort,
    )


def episode_features(
    steps: EpisodeSteps, encoder: CameraExtractor, kinematics: Kinematics
) -> Float32:
    """What the encoder sees in every row of an episode, (N, F)."""
    proprio = episode_proprio(steps, kinematics)
    images = {camera: steps.images(camera) for camera in encoder.cameras}
    parts = []
    for first in range(0, len(steps), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        seen = {camera: pictures[rows] for camera, pictures in images.items()}
        parts.append(encoder.features_from_arrays(seen, proprio[rows]).cpu().numpy())
    return np.concatenate(parts)
