"""The servo lag of the arm that played, from a data set, as the lines of a robot file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qsteer_ros.learning.play import load_play
from qsteer_ros.motion.servo import ServoModel, fit_servo_from_log


def fit_servo_of_play(data: Path, *, dt_s: float = 0.05, episodes: int = 50) -> ServoModel:
    """Fit the lag of each joint to the commands and positions of play.

    Args:
        data: Folder that ``qsteer data`` wrote.
        dt_s: Control period of the play.
        episodes: How many to read; the fit does not need many.

    Raises:
        ConfigError: There is no play.
        DataError: The play does not determine the lag of a joint.
    """
    play = load_play(data / "play", limit=episodes)
    ends = np.append(np.diff(play.episode) != 0, True)
    log = {"qpos": play.qpos, "control": play.ctrl, "terminals": ends}
    return fit_servo_from_log(log, dt_s)


def robot_file_lines(servo: ServoModel) -> str:
    """The ``servo`` section to paste into a robot file."""
    tau = ", ".join(f"{value:.4f}" for value in servo.tau_s)
    bias = ", ".join(f"{value:.5f}" for value in servo.bias_rad)
    return f"servo:\n  tau_s: [{tau}]\n  bias_rad: [{bias}]"
