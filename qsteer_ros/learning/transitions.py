r"""What a critic learns from: chunks, the return inside them and what follows.

A transition is a window of H control steps. The reward is -1 for every step after which the cube
is not within 4 cm of the goal and 0 from the first step after which it is; there the episode has
*terminated* and nothing is bootstrapped:

.. math:: R_t = \sum_{i<H} \gamma^i r_{t+i}, \qquad
          b_t = \begin{cases} 0 & \text{goal reached inside the window} \\
                              \gamma^H & \text{otherwise} \end{cases}

A window whose first state is at the goal has terminated before it began: :math:`R = b = 0`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.errors import DataError
from qsteer_ros.learning.play import Play, window_starts, windows
from qsteer_ros.policies.features import Float32


@dataclass(frozen=True)
class Transitions:
    """Windows ready for training.

    Attributes:
        features: At the start of each window, (M, F).
        chunk: Normalised actions, (M, H, A).
        reward: Discounted return inside the window, (M,).
        bootstrap: What multiplies the value of the next features, (M,).
        next_features: After the window, (M, F).
        encoder_hash: Encoder that made the features; None when they are the simulator's truth.
        data_hash: Names the data.

    Raises:
        DataError: Lengths differ, a number is not finite, or there is nothing to learn from.
    """

    features: Float32
    chunk: Float32
    reward: Float32
    bootstrap: Float32
    next_features: Float32
    encoder_hash: str | None
    data_hash: str

    def __post_init__(self) -> None:
        """Refuse what would train a critic on nonsense."""
        count = len(self.features)
        if count == 0:
            raise DataError(
                "a critic needs transitions: there are none. Record longer episodes, or more."
            )
        for name in ("features", "chunk", "reward", "bootstrap", "next_features"):
            array = getattr(self, name)
            if len(array) != count:
                raise DataError(
                    f"Transitions.{name} must have {count} rows like features: got {len(array)}."
                )
            if not np.all(np.isfinite(array)):
                raise DataError(f"Transitions.{name} must be finite. Check the recorded data.")


def chunk_returns(
    success: NDArray[np.bool_], starts: NDArray[np.int64], horizon: int, discount: float
) -> tuple[Float32, Float32]:
    """Return and bootstrap factor of each window.

    Args:
        success: Whether the cube is at the goal in each state, (N,).
        starts: First row of each window, (M,); ``horizon`` further rows follow each.
        horizon: H.
        discount: gamma.

    Returns:
        Rewards (M,) and bootstraps (M,).
    """
    at_goal = success[starts[:, None] + np.arange(horizon + 1)]  # (M, H + 1)
    reached = np.logical_or.accumulate(at_goal, axis=1)
    rewards = np.where(reached[:, 1:], 0.0, -1.0)
    reward = rewards @ (discount ** np.arange(horizon))
    bootstrap = np.where(reached[:, -1], 0.0, discount**horizon)
    return reward.astype(np.float32), bootstrap.astype(np.float32)


def from_play(
    play: Play, *, goal_xyz: NDArray[np.floating], radius_m: float, horizon: int, discount: float
) -> Transitions:
    """Relabel play with the reward of one goal.

    Args:
        play: Goal-free play.
        goal_xyz: Where the cube should go, (3,), m.
        radius_m: How close counts.
        horizon: H.
        discount: gamma.
    """
    starts = window_starts(play.episode, horizon)
    success = np.linalg.norm(play.cube_xyz - goal_xyz, axis=1) <= radius_m
    reward, bootstrap = chunk_returns(success, starts, horizon, discount)
    features = play.features()
    return Transitions(
        features=features[starts],
        chunk=windows(play.action, starts, horizon),
        reward=reward,
        bootstrap=bootstrap,
        next_features=features[starts + horizon],
        encoder_hash=None,
        data_hash=play.hash,
    )
