r"""What a critic learns from logged episodes: windows of H executed actions.

With :math:`r` the reward of a state and :math:`T` the first row at which the goal was reached, the
window that starts at row :math:`t` has

.. math:: R_t = \sum_{i<H,\; t+i<T} \gamma^i \, r_{t+i+1}, \qquad
          b_t = \begin{cases} 0 & T \le t + H \quad\text{(terminated)} \\
                              \gamma^H & \text{otherwise} \end{cases}

A window needs H executed actions and the observation after them, measured at its stamp. Where the
episode terminated inside the window, what would have followed has no weight: rows after it may be
missing and their actions are zero. An episode that ended by the clock is truncated, not
terminated: its last windows bootstrap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.errors import DataError
from qsteer_ros.replay.episode import Episode, find_episodes
from qsteer_ros.replay.steps import EpisodeSteps, read_steps

Float32 = NDArray[np.float32]
FeaturesOf = Callable[[EpisodeSteps], NDArray[np.floating]]


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of one episode.

    Attributes:
        start: Row of the first step, (M,).
        next: Row after the window, (M,); the last row where it is beyond the end.
        chunk: Executed actions, (M, H, A), normalised.
        reward: Discounted return inside the window, (M,).
        bootstrap: What multiplies the value of the next observation, (M,).
        terminated: Whether the goal was reached inside the window, (M,).
        truncated: Whether the clock ended the episode right after the window, (M,).
        rewards: Of each step, 0 from the goal on, (M, H).
        ended: Whether the goal had been reached at the end of each step, (M, H).
        mc_return: Discounted reward from the first step to the goal or the end, (M,).
        solved: Whether the goal is reached in the episode, be it in no window.
    """

    start: NDArray[np.int64]
    next: NDArray[np.int64]
    chunk: Float32
    reward: Float32
    bootstrap: Float32
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    rewards: Float32
    ended: NDArray[np.bool_]
    mc_return: Float32
    solved: bool


def windows_of(steps: EpisodeSteps, *, horizon: int, discount: float) -> Windows:
    """All windows of one episode that can be learned from; see the module.

    Args:
        steps: The episode.
        horizon: H.
        discount: gamma, per control step.
    """
    count = len(steps)
    reached = np.flatnonzero(steps.success)
    terminal = int(reached[0]) if reached.size else count + horizon
    last_acted = count - 1 - int(np.argmax(steps.acting[::-1])) if steps.acting.any() else -1
    rows: list[int] = []
    for start in range(min(count, terminal + 1)):
        needed = max(1, min(horizon, terminal - start))
        after = min(start + horizon, terminal)
        if (
            after < count
            and bool(np.all(steps.acting[start : start + needed]))
            and bool(steps.complete[start])
            and (terminal <= start + horizon or bool(steps.complete[after]))
        ):
            rows.append(start)
    start_rows = np.array(rows, dtype=np.int64)
    index = start_rows[:, None] + np.arange(horizon)  # (M, H)
    inside = index < min(terminal, count)
    safe = np.minimum(index, count - 1)
    following = np.minimum(index + 1, count - 1)
    weights = discount ** np.arange(horizon)
    terminated = terminal <= start_rows + horizon
    chunk = np.where((inside & steps.acting[safe])[..., None], steps.action[safe], 0.0)
    rewards = np.where(inside, steps.reward[following], 0.0)
    to_go = _returns_to_go(steps.reward, terminal, discount)
    return Windows(
        start=start_rows,
        next=np.minimum(start_rows + horizon, count - 1),
        chunk=chunk.astype(np.float32),
        reward=(rewards @ weights).astype(np.float32),
        bootstrap=np.where(terminated, 0.0, discount**horizon).astype(np.float32),
        terminated=terminated,
        truncated=~terminated & (start_rows + horizon > last_acted),
        rewards=rewards.astype(np.float32),
        ended=index + 1 >= terminal,
        mc_return=to_go[start_rows].astype(np.float32),
        solved=bool(reached.size),
    )


def _returns_to_go(
    reward: NDArray[np.floating], terminal: int, discount: float
) -> NDArray[np.float64]:
    r"""Discounted reward from every row on, (N,).

    An episode that ended by the clock is taken to go on as it ended: its last row has
    :math:`r / (1 - \gamma)`, 0 without discount.
    """
    total = np.zeros(len(reward))
    last = len(reward) - 1
    for row in range(last, -1, -1):
        if row >= terminal:
            continue
        if row == last:
            total[row] = reward[row] / (1.0 - discount) if discount < 1.0 else 0.0
        else:
            total[row] = reward[row + 1] + discount * total[row + 1]
    return total


@dataclass(frozen=True, eq=False)
class LoggedTransitions:
    """Windows of many episodes, with features.

    Attributes:
        features: At the start of each window, (M, F).
        next_features: After it, (M, F).
        chunk: Executed actions, (M, H, A), normalised.
        reward: Discounted return inside the window, (M,).
        bootstrap: What multiplies the value of ``next_features``, (M,).
        terminated: (M,).
        truncated: (M,).
        rewards: Of each step, 0 from the goal on, (M, H).
        ended: Whether the goal had been reached at the end of each step, (M, H).
        next_chunk: Executed actions of the window that follows, (M, H, A); zeros without one.
        next_valid: Whether there is one, (M,).
        mc_return: Discounted reward from the first step to the goal or the end, (M,).
        success: Whether the episode reached the goal, (M,).
        episode: Index into ``episodes``, (M,).
        stamp_ns: Stamp of the window's first step, (M,).
        episodes: The episodes used, in the order of their folders.
        skipped: Folder and reason of every episode that was not used; whoever trains says so.
        hash: SHA-256 over the hashes of the bags used.
    """

    features: Float32
    next_features: Float32
    chunk: Float32
    reward: Float32
    bootstrap: Float32
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    rewards: Float32
    ended: NDArray[np.bool_]
    next_chunk: Float32
    next_valid: NDArray[np.bool_]
    mc_return: Float32
    success: NDArray[np.bool_]
    episode: NDArray[np.int64]
    stamp_ns: NDArray[np.int64]
    episodes: tuple[Episode, ...]
    skipped: tuple[tuple[Path, str], ...]
    hash: str


def logged_steps(
    stores: str | Path | Sequence[str | Path], *, goal: int | None = None
) -> Iterator[EpisodeSteps | tuple[Path, str]]:
    """Every episode of the stores: its steps, or its folder and why it cannot be used.

    Args:
        stores: An episode, a folder of episodes, or several.
        goal: Use only episodes of this goal: rewards of another say nothing about it.

    Raises:
        ConfigError: A store does not exist.
    """
    roots = [stores] if isinstance(stores, str | Path) else list(stores)
    for folder in [folder for root in roots for folder in find_episodes(root)]:
        try:
            info = Episode.load(folder)
            if goal is not None and info.goal != goal:
                yield folder, f"its goal is {info.goal}"
                continue
            yield read_steps(folder)
        except DataError as error:
            yield folder, str(error)


def load_transitions(
    stores: str | Path | Sequence[str | Path],
    *,
    horizon: int,
    discount: float,
    features: FeaturesOf,
    goal: int | None = None,
    on_episode: Callable[[int], None] = lambda windows: None,
) -> LoggedTransitions:
    """Turn stores of episodes into transitions, one episode in memory at a time.

    Args:
        stores: An episode, a folder of episodes, or several.
        horizon: H, actions per window.
        discount: gamma, per control step.
        features: Features of every row of an episode, (N, F): an encoder applied to its images
            and joints.
        goal: Use only episodes of this goal.
        on_episode: Told the number of windows after each episode used, for a progress bar.

    Raises:
        ConfigError: A store does not exist.
        DataError: No episode can be used, the message says why not; or episodes are of policies
            with other chunks or at another rate.
    """
    parts: list[tuple[Windows, NDArray[np.floating], NDArray[np.int64]]] = []
    episodes: list[Episode] = []
    skipped: list[tuple[Path, str]] = []
    first: EpisodeSteps | None = None
    for steps in logged_steps(stores, goal=goal):
        if isinstance(steps, tuple):
            skipped.append(steps)
            continue
        windows = windows_of(steps, horizon=horizon, discount=discount)
        if len(windows.start) == 0:
            skipped.append((steps.folder, f"no window of {horizon} executed actions"))
            continue
        first = first or steps
        check_alike(steps, first)
        parts.append((windows, np.asarray(features(steps)), steps.stamp_ns))
        episodes.append(steps.info)
        on_episode(len(windows.start))
    if not parts:
        reasons = "; ".join(f"{folder.name}: {reason}" for folder, reason in skipped[:3])
        raise DataError(
            f"{stores} must hold episodes to learn from: none can be used"
            f"{f' ({reasons})' if reasons else ''}. Record episodes with a policy and a reward."
        )
    digest = hashlib.sha256()
    for info in episodes:
        digest.update(str(info.bag["sha256"]).encode())
    counts = [len(w.start) for w, _, _ in parts]
    follow = [_next_chunks(w, horizon) for w, _, _ in parts]
    return LoggedTransitions(
        features=np.concatenate([f[w.start] for w, f, _ in parts]).astype(np.float32),
        next_features=np.concatenate([f[w.next] for w, f, _ in parts]).astype(np.float32),
        chunk=np.concatenate([w.chunk for w, _, _ in parts]),
        reward=np.concatenate([w.reward for w, _, _ in parts]),
        bootstrap=np.concatenate([w.bootstrap for w, _, _ in parts]),
        terminated=np.concatenate([w.terminated for w, _, _ in parts]),
        truncated=np.concatenate([w.truncated for w, _, _ in parts]),
        rewards=np.concatenate([w.rewards for w, _, _ in parts]),
        ended=np.concatenate([w.ended for w, _, _ in parts]),
        next_chunk=np.concatenate([following for following, _ in follow]),
        next_valid=np.concatenate([valid for _, valid in follow]),
        mc_return=np.concatenate([w.mc_return for w, _, _ in parts]),
        success=np.repeat([w.solved for w, _, _ in parts], counts),
        episode=np.repeat(np.arange(len(parts)), counts),
        stamp_ns=np.concatenate([stamp_ns[w.start] for w, _, stamp_ns in parts]),
        episodes=tuple(episodes),
        skipped=tuple(skipped),
        hash=digest.hexdigest(),
    )


def check_alike(steps: EpisodeSteps, first: EpisodeSteps) -> None:
    """Refuse to learn from episodes that mean different things by a chunk.

    Raises:
        DataError: Chunks have another shape than in ``first``, or another time between actions.
    """
    mine, theirs = ((s.horizon, s.action.shape[1], s.control_dt_ns * 1e-9) for s in (steps, first))
    if mine != theirs:
        raise DataError(
            f"'{steps.folder}' must have chunks like '{first.folder.name}', {theirs[0]} actions "
            f"of {theirs[1]} numbers, {theirs[2]:g} s each: it has {mine[0]} of {mine[1]}, "
            f"{mine[2]:g} s each. Keep episodes of one policy in a folder and train from that."
        )


def _next_chunks(windows: Windows, horizon: int) -> tuple[Float32, NDArray[np.bool_]]:
    """The chunk that was executed after each window, zeros where none is whole, and whether."""
    place = {int(start): index for index, start in enumerate(windows.start)}
    rows = np.array([place.get(int(start) + horizon, -1) for start in windows.start])
    valid = (rows >= 0) & ~windows.terminated
    chunk = np.where(valid[:, None, None], windows.chunk[np.maximum(rows, 0)], 0.0)
    return chunk.astype(np.float32), valid
