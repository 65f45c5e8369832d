"""A chain of states with two actions, its transitions as training wants them, and its values.

From state s the action +1 leads to s + 1 for a reward of -1, from the last one to the end of the
task; -1 stays for -2. Chunks have one action, features name the state one-hot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.interface import Interface
from qsteer_ros.learning.transitions import Transitions

STATES, DISCOUNT = 4, 0.7
FORWARD, BACK = 3, 7
"""How often each action is taken in every state, of ten times."""
ACTIONS = (1.0, -1.0)
COUNTS = (FORWARD, BACK)
REWARD = (-1.0, -2.0)

Array = NDArray[np.float64]


def interface(states: int = STATES, horizon: int = 1) -> Interface:
    return Interface(
        horizon=horizon,
        action_names=("go",),
        action_scale=(1.0,),
        feature_names=tuple(f"state{s}" for s in range(states)),
        control_dt_s=0.05,
    )


def after(state: int, action: int) -> int | None:
    """The next state; None: the task has ended."""
    if action == 1:
        return state
    return state + 1 if state + 1 < STATES else None


def transitions() -> Transitions:
    """Every state, action and next action as often as the data take them."""
    rows = []
    for state in range(STATES):
        for action in range(2):
            there = after(state, action)
            for following in range(2):
                count = COUNTS[action] * COUNTS[following]
                rows += [(state, action, there, following)] * count
    now = np.array([row[0] for row in rows])
    action = np.array([row[1] for row in rows])
    over = np.array([row[2] is None for row in rows])
    then = np.array([0 if row[2] is None else row[2] for row in rows])
    following = np.array([row[3] for row in rows])
    eye = np.eye(STATES, dtype=np.float32)
    reward = np.take(REWARD, action).astype(np.float32)
    values = behaviour()
    return Transitions(
        features=eye[now],
        chunk=np.take(ACTIONS, action).astype(np.float32)[:, None, None],
        interface=interface(),
        data_hash="chain",
        reward=reward,
        bootstrap=np.where(over, 0.0, DISCOUNT).astype(np.float32),
        next_features=eye[then],
        rewards=reward[:, None],
        ended=over[:, None],
        next_chunk=np.take(ACTIONS, following).astype(np.float32)[:, None, None],
        next_valid=~over,
        mc_return=values[now, action].astype(np.float32),
        truncated=np.zeros(len(rows), dtype=np.bool_),
    )


def with_rows_that_lead_nowhere(data: Transitions) -> Transitions:
    """A third more rows, cut off: no chunk follows them, and what stands there is nonsense."""
    picked = np.arange(0, len(data), 3)
    picked = picked[data.bootstrap[picked] > 0]  # type: ignore[index]
    arrays = {name: np.concatenate([a, a[picked]]) for name, a in data.arrays().items()}
    new = slice(len(data), None)
    arrays["next_valid"][new] = False
    arrays["next_chunk"][new] = 0.0
    arrays["reward"][new] = 50.0
    return replace(data, **arrays)


def solved(value_of: Callable[[Array], float]) -> Array:
    """Q of every state and action, (S, 2), where V is made of a state's two values."""
    q = np.zeros((STATES, 2))
    for _ in range(2000):
        value = [value_of(row) for row in q]
        for state in range(STATES):
            for action in range(2):
                there = after(state, action)
                follows = 0.0 if there is None else DISCOUNT * value[there]
                q[state, action] = REWARD[action] + follows
    return q


def expectile(row: Array, kappa: float) -> float:
    """The number v with kappa E[(q - v)+] = (1 - kappa) E[(v - q)+], by bisection."""
    shares = np.array(COUNTS) / sum(COUNTS)
    low, high = row.min(), row.max()
    for _ in range(80):
        middle = (low + high) / 2
        above = (shares * np.maximum(row - middle, 0.0)).sum()
        below = (shares * np.maximum(middle - row, 0.0)).sum()
        low, high = (middle, high) if kappa * above > (1 - kappa) * below else (low, middle)
    return float((low + high) / 2)


def behaviour() -> Array:
    """Q of the policy that made the data."""
    return solved(lambda row: float(row @ np.array(COUNTS) / sum(COUNTS)))
