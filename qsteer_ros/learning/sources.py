"""From the words a user gives (``data=``, ``episodes=``) to windows to train on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.learning.play import Play, load_play, window_starts, windows
from qsteer_ros.learning.settings import ChunkSource, RewardSource
from qsteer_ros.learning.transitions import Transitions, from_steps


def load_chunks(settings: ChunkSource) -> Transitions:
    """Features and chunks, for programs that need no reward.

    Raises:
        ConfigError: The folder is missing or holds something else.
        DataError: A file in it is damaged, or nothing can be used.
    """
    if settings.episodes:
        from qsteer_ros.learning.logged import logged_transitions

        return logged_transitions(settings, goal=None, discount=1.0)
    folder = Path(settings.data)
    with _naming(folder):
        if suite_of(folder):
            from qsteer_ros.learning.suite import suite_chunks

            return suite_chunks(folder, horizon=settings.horizon)
        return chunks_of_play(load_play(folder / "play"), settings.horizon)


def load_transitions(settings: RewardSource) -> Transitions:
    """Windows with the reward of one task.

    Raises:
        ConfigError: The folder is missing or holds something else, or there is no such task.
        DataError: A file in it is damaged, or nothing can be used.
    """
    if settings.episodes:
        from qsteer_ros.learning.logged import logged_transitions

        return logged_transitions(settings, goal=settings.goal, discount=settings.discount)
    folder = Path(settings.data)
    with _naming(folder):
        suite = suite_of(folder)
        _check_read(settings, suite)
        if suite:
            from qsteer_ros.learning.suite import suite_transitions

            return suite_transitions(
                folder,
                task=settings.task,
                horizon=settings.horizon,
                discount=settings.discount,
                sparse=settings.sparse,
            )
        return play_transitions(folder, settings)


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Errors about the data as a whole say whose they are."""
    try:
        yield
    except DataError as error:
        if str(folder) in str(error):
            raise
        raise DataError(f"'{folder}': {error}") from error


def _check_read(settings: RewardSource, suite: str | None) -> None:
    """Refuse a goal for a suite's task, and the other way round: it would silently do nothing."""
    others = ("goal",) if suite else ("task", "sparse")
    for name in others:
        value = getattr(settings, name)
        if value != getattr(RewardSource(), name):
            held = f"play of {suite}" if suite else "play of the simulated arm"
            right = "task" if suite else "goal"
            raise ConfigError(
                f"'{name}' must be left out with data={settings.data}, which holds {held}: got "
                f"{value}. What is wanted there is '{right}'."
            )


def chunks_of_play(play: Play, horizon: int) -> Transitions:
    """Windows of play without a reward."""
    starts = window_starts(play.episode, horizon)
    return Transitions(
        features=play.features()[starts],
        chunk=windows(play.action, starts, horizon),
        interface=play.interface(horizon),
        data_hash=play.hash,
        episode=play.episode[starts],
    )


def play_transitions(folder: Path, settings: RewardSource) -> Transitions:
    """Play relabelled with the reward of ``settings.goal``: -1 until the cube is there.

    Raises:
        ConfigError: There is no play, or no such goal.
    """
    import numpy as np

    from qsteer_ros.sim.goals import SUCCESS_DISTANCE_M, find_goal
    from qsteer_ros.sim.scene import goal_position

    play = load_play(folder / "play")
    goal = goal_position(find_goal(settings.goal).task_id)
    solved = np.linalg.norm(play.cube_xyz - goal, axis=1) <= SUCCESS_DISTANCE_M
    return from_steps(
        features=play.features(),
        action=play.action,
        state_reward=np.where(solved, 0.0, -1.0).astype(np.float32),
        solved=solved,
        episode=play.episode,
        interface=play.interface(settings.horizon),
        discount=settings.discount,
        data_hash=play.hash,
    )


def suite_of(folder: Path) -> str | None:
    """Name of the public suite's environment whose play a folder holds; None for other data.

    Raises:
        DataError: The folder's ``dataset.json`` is damaged.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())["settings"].get("suite")
    except (ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"'{path}' is damaged: {error}. Delete the folder and generate it again."
        ) from error
    if found is not None and not isinstance(found, str):
        raise ConfigError(f"'suite' in {path} must be a name: got {found!r}.")
    return found
