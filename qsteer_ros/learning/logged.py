"""Transitions from logged episodes alone: pictures and joints through the encoder."""

from __future__ import annotations

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
from qsteer_ros.policies.encoder import Encoder
from qsteer_ros.policies.features import Float32, proprioception_rows
from qsteer_ros.replay.steps import EpisodeSteps
from qsteer_ros.replay.transitions import load_transitions

ROWS_AT_ONCE = 64


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
        DataError: No episode of this goal can be used; the message says why.
    """
    robot_file = RobotFile.load(settings.robot)
    kinematics = Kinematics(robot_file)
    eyes = Encoder.load(resources.find(settings.encoder), robot_file)

    interface = Interface(
        horizon=settings.horizon,
        action_names=tuple(robot_file.action_names),
        action_scale=tuple(float(scale) for scale in robot_file.action_scale),
        feature_names=eyes.feature_names,
        control_dt_s=robot_file.control_dt_s,
        encoder_hash=eyes.hash,
    )

    def features(steps: EpisodeSteps) -> NDArray[np.floating]:
        if tuple(steps.info.robot["joints"]) != robot_file.joints:
            raise ConfigError(
                f"robot '{robot_file.name}' must have the joints of the episodes: "
                f"{steps.folder.name} was recorded with {steps.info.robot['joints']}. "
                "Give the robot file it was recorded with: --robot FILE."
            )
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
    )


def episode_features(steps: EpisodeSteps, encoder: Encoder, kinematics: Kinematics) -> Float32:
    """What the encoder sees in every row of an episode, (N, F)."""
    poses = [kinematics.forward(position)[0] for position in steps.position]
    yaws = [kinematics.yaw(position) for position in steps.position]
    proprio = proprioception_rows(
        position=steps.position,
        velocity=steps.velocity,
        tool_xyz=np.stack(poses),
        tool_yaw=np.array(yaws),
        gripper=steps.gripper,
        effort=steps.gripper_effort,
    )
    images = {camera: steps.images(camera) for camera in encoder.cameras}
    parts = []
    for first in range(0, len(steps), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        seen = {camera: pictures[rows] for camera, pictures in images.items()}
        parts.append(encoder.features_from_arrays(seen, proprio[rows]).cpu().numpy())
    return np.concatenate(parts)
