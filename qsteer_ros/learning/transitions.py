r"""What a critic learns from: windows of H control steps and what follows them.

A window earns the reward of every state it arrives in, until the task is solved; there the episode
has *terminated*, nothing more is earned and nothing is bootstrapped:

.. math:: R_t = \sum_{i<H} \gamma^i r_{t+i}, \qquad
          b_t = \begin{cases} 0 & \text{solved inside the window} \\
                              \gamma^H & \text{otherwise} \end{cases}

A window whose first state is solved has terminated before it began: :math:`R = b = 0`. A window
that would run over the end of an episode is left out. An episode that is merely cut off is
*truncated*: its last window bootstraps.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.interface import Interface
from qsteer_ros.learning.play import window_starts, windows
from qsteer_ros.policies.features import Float32

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Transitions:
    """Windows ready for training. What a source does not know is None, see `needed`.

    Attributes:
        features: At the start of each window, (M, F).
        chunk: Normalised actions, (M, H, A).
        interface: The space they live in; it names the encoder that made the features.
        data_hash: Names the data.
        reward: Discounted reward inside the window, (M,).
        bootstrap: What multiplies the value of the next features, (M,).
        next_features: After the window, (M, F).
        rewards: Of each step, 0 from the end of the task on, (M, H).
        ended: Whether the task was over at the end of each step, (M, H) bool.
        next_chunk: The data's chunk after the window, (M, H, A); zeros where there is none.
        next_valid: Whether there is one, (M,) bool.
        mc_return: Discounted reward from the window's first state to the end, (M,).
        truncated: The window ends where its episode was cut off, (M,) bool.
        success: Whether the task is solved at or after the window's first state, (M,) bool.
        episode: Which episode each window is from, (M,) int.
        episodes: Hash of each logged episode; empty for other data.
        left_out: Name of each logged episode that could not be used, and why.

    Raises:
        DataError: Lengths or horizons differ, a number is not finite, or there is nothing.
    """

    features: Float32
    chunk: Float32
    interface: Interface
    data_hash: str
    reward: Float32 | None = None
    bootstrap: Float32 | None = None
    next_features: Float32 | None = None
    rewards: Float32 | None = None
    ended: Bools | None = None
    next_chunk: Float32 | None = None
    next_valid: Bools | None = None
    mc_return: Float32 | None = None
    truncated: Bools | None = None
    success: Bools | None = None
    episode: NDArray[np.int64] | None = None
    episodes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what would train a critic on nonsense."""
        count = len(self.features)
        if count == 0:
            raise DataError(
                "training needs transitions: there are none. Record longer episodes, or more."
            )
        for name, array in self.arrays().items():
            if len(array) != count:
                raise DataError(
                    f"Transitions.{name} must have {count} rows like features: got {len(array)}."
                )
            if not np.all(np.isfinite(array)):
                raise DataError(f"Transitions.{name} must be finite. Check the recorded data.")
        expected = (self.interface.horizon, self.interface.action_dim)
        if self.chunk.shape[1:] != expected:
            raise DataError(
                f"Transitions.chunk must have {expected[0]} actions of {expected[1]} dimensions: "
                f"got {self.chunk.shape[1:]}. Do not mix data of several horizons."
            )

    def __len__(self) -> int:
        """M."""
        return len(self.features)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that has one row per window."""
        found = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}

    def origin(self) -> dict[str, Any]:
        """What a checkpoint says about them, beside their hash."""
        return {
            "transitions": len(self),
            "episodes": list(self.episodes),
            "left_out": list(self.left_out),
        }

    def needed(self, *names: str) -> dict[str, NDArray[Any]]:
        """These arrays, and features and chunk.

        Raises:
            ConfigError: The source of the data does not know one of them.
        """
        arrays = self.arrays()
        missing = [name for name in names if name not in arrays]
        if missing:
            raise ConfigError(
                f"this training needs {', '.join(missing)} of every transition: the data hold "
                f"{', '.join(sorted(arrays))}. Choose another objective, or data with rewards."
            )
        return {name: arrays[name] for name in ("features", "chunk", *names)}


def from_steps(
    *,
    features: Float32,
    action: Float32,
    state_reward: Float32,
    solved: Bools,
    episode: NDArray[np.int64],
    interface: Interface,
    discount: float,
    data_hash: str,
) -> Transitions:
    """Windows of episodes that are recorded step by step and never stop at the goal.

    Args:
        features: Of the state in each row, (N, F).
        action: Taken in each row, normalised, (N, A).
        state_reward: Earned by arriving in the state of each row, (N,).
        solved: Whether the task is solved in that state, (N,).
        episode: Of each row, rising, (N,).
        interface: Its horizon is H.
        discount: gamma.
        data_hash: Names the data.

    Raises:
        DataError: No episode is long enough.
    """
    horizon = interface.horizon
    starts = window_starts(episode, horizon)
    rewards, ended = step_rewards(state_reward, solved, starts, horizon)
    last = len(episode) - 1
    following = starts + 2 * horizon - 1
    next_valid = (following <= last) & (episode[np.minimum(following, last)] == episode[starts])
    rows = np.minimum(starts[:, None] + np.arange(horizon, 2 * horizon), last)
    after = starts + horizon
    cut = (after == last) | (episode[np.minimum(after + 1, last)] != episode[after])
    return Transitions(
        features=features[starts],
        chunk=windows(action, starts, horizon),
        interface=interface,
        data_hash=data_hash,
        reward=discounted(rewards, discount),
        bootstrap=np.where(ended[:, -1], 0.0, discount**horizon).astype(np.float32),
        next_features=features[after],
        rewards=rewards,
        ended=ended,
        next_chunk=np.where(next_valid[:, None, None], action[rows], 0.0).astype(np.float32),
        next_valid=next_valid,
        mc_return=returns_to_go(state_reward, solved, episode, discount)[starts],
        truncated=cut & ~ended[:, -1],
        success=_solved_later(solved, episode)[starts],
        episode=episode[starts],
    )


def step_rewards(
    state_reward: Float32, solved: Bools, starts: NDArray[np.int64], horizon: int
) -> tuple[Float32, Bools]:
    """Reward of each step of each window, 0 from the solved state on, and where that is.

    Args:
        state_reward: Earned by arriving in each state, (N,).
        solved: (N,).
        starts: First row of each window, (M,); ``horizon`` further rows follow each.
        horizon: H.

    Returns:
        Rewards (M, H) and whether the task was over at the end of each step (M, H).
    """
    rows = starts[:, None] + np.arange(horizon + 1)  # (M, H + 1)
    reached = np.logical_or.accumulate(solved[rows], axis=1)
    rewards = np.where(reached[:, 1:], 0.0, state_reward[rows[:, 1:]]).astype(np.float32)
    return rewards, reached[:, 1:]


def discounted(rewards: Float32, discount: float) -> Float32:
    r""":math:`\sum_i \gamma^i r_i`, (M, H) -> (M,)."""
    total: Float32 = (rewards @ (discount ** np.arange(rewards.shape[1]))).astype(np.float32)
    return total


def returns_to_go(
    state_reward: Float32, solved: Bools, episode: NDArray[np.int64], discount: float
) -> Float32:
    r"""Monte-Carlo return of every row, (N,).

    .. math:: G_t = \begin{cases} 0 & s_t \text{ solved} \\
              r(s_{t+1}) + \gamma G_{t+1} & \text{otherwise} \end{cases}

    An episode that is cut off unsolved is taken to go on as it ended: its last state has
    :math:`r / (1 - \gamma)` (0 without discount), as Cal-QL's code does for failures.
    """
    reward = np.where(solved, 0.0, state_reward).astype(np.float64)
    total = np.zeros(len(reward))
    last = len(reward) - 1
    for row in range(last, -1, -1):
        if solved[row]:
            continue
        if row == last or episode[row + 1] != episode[row]:
            total[row] = reward[row] / (1.0 - discount) if discount < 1.0 else 0.0
        else:
            total[row] = reward[row + 1] + discount * total[row + 1]
    return total.astype(np.float32)


def _solved_later(solved: Bools, episode: NDArray[np.int64]) -> Bools:
    """Whether a state at or after each row of the same episode is solved."""
    later = np.zeros(len(solved), dtype=np.bool_)
    for row in range(len(solved) - 1, -1, -1):
        same = row + 1 < len(solved) and episode[row + 1] == episode[row]
        later[row] = solved[row] or (same and later[row + 1])
    return later
