r"""Play of the public suite as something to learn from: any task's reward, after the fact.

Play knows no task. Which conditions of a task hold in a recorded state follows from where the
objects are, so that one data set serves every task of its environment:

.. math:: r(s) = \#\{\text{conditions that hold in } s\} - \#\{\text{conditions}\}, \qquad
          \text{solved}(s) \iff r(s) = 0

OGBench's environments pay :math:`r(s_t)` for an action taken in :math:`s_t` and end where
:math:`s_t` is solved. A window here earns the reward of the states it *arrives in*, as everywhere
in this package. Both rank actions alike, because what is paid for the state itself does not
depend on the action:

.. math:: Q_{\text{OGBench}}(s, a) = r(s) + \gamma \, Q(s, a)

Source: OGBench, arXiv:2410.20092; its ``relabel_utils.py``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.interface import Interface
from qsteer_ros.learning.npz import check_rows, read_npz
from qsteer_ros.learning.play import window_starts, windows
from qsteer_ros.learning.transitions import Transitions, from_steps
from qsteer_ros.policies.features import Float32
from qsteer_ros.sim import suite

MADE_BY = "Generate it with: qsteer bench data"
REMEDY = "Delete it and generate it again."
SHAPES: dict[str, tuple[int | None, ...]] = {
    "observation": (None,),
    "action": (len(suite.ACTION_NAMES),),
    "qpos": (None,),
    "buttons": (None,),
}
"""Of a row of every array that is read; widths are the environment's."""


@dataclass(frozen=True, eq=False)
class SuitePlay:
    """Episodes of play laid end to end; row t is the state before action t.

    Attributes:
        suite: Name of the environment.
        observation: (N, F).
        action: Normalised, (N, 5).
        qpos: Simulator positions, (N, nq).
        buttons: States of the buttons, (N, m).
        episode: Index of the episode a row belongs to, (N,).
        hash: SHA-256 of the numbers, hexadecimal.
    """

    suite: str
    observation: Float32
    action: Float32
    qpos: Float32
    buttons: NDArray[np.int8]
    episode: NDArray[np.int64]
    hash: str

    def interface(self, horizon: int) -> Interface:
        """The space of its chunks."""
        return suite_interface(self.observation.shape[1], horizon)

    def rewards(self, task: int) -> tuple[Float32, NDArray[np.bool_]]:
        """Reward of each state, and whether the task is solved there, (N,) each.

        Args:
            task: Number of the task, counted from 1.

        Raises:
            ConfigError: There is no such task.
        """
        goal = suite.goal(self.suite, task)
        holds = goal.satisfied(self.qpos, self.buttons)
        unmet = goal.conditions - np.count_nonzero(holds, axis=1)
        return -unmet.astype(np.float32), unmet == 0


def suite_interface(features: int, horizon: int) -> Interface:
    """The space of an environment's policies and critics.

    Args:
        features: F, numbers in an observation.
        horizon: Actions per chunk.
    """
    return Interface(
        horizon=horizon,
        action_names=suite.ACTION_NAMES,
        action_scale=suite.ACTION_SCALES,
        feature_names=tuple(f"obs_{i}" for i in range(features)),
        control_dt_s=suite.CONTROL_DT_S,
    )


def load_suite(folder: Path, *, split: str = "play", limit: int | None = None) -> SuitePlay:
    """Read the episodes of a data set of the suite, in the order of their names.

    Args:
        folder: It holds ``dataset.json``.
        split: ``play`` or ``held_out``.
        limit: Read no more than this many episodes.

    Raises:
        ConfigError: There is no data set, or no episode in it.
        DataError: A file is damaged, lacks an array or holds a number that is not finite, or
            episodes are of different environments.
    """
    name = _suite_of(folder)
    paths = sorted((folder / split).glob("episode_*.npz"))[:limit]
    if not paths:
        raise ConfigError(f"'{folder / split}' must hold episodes: none found. {MADE_BY}.")
    parts: dict[str, list[NDArray[np.generic]]] = {key: [] for key in SHAPES}
    digest = hashlib.sha256(name.encode())
    lengths = []
    for path in paths:
        arrays = read_npz(path, remedy=REMEDY)
        lengths.append(check_rows(path, arrays, SHAPES, remedy=REMEDY))
        for key in parts:
            array = arrays[key]
            if parts[key] and array.shape[1:] != parts[key][0].shape[1:]:
                raise DataError(
                    f"'{path}' must have {key} like the episodes before it: got {array.shape}, "
                    f"they have {parts[key][0].shape}. {REMEDY}"
                )
            parts[key].append(array)
            digest.update(np.ascontiguousarray(array).tobytes())
    whole: dict[str, NDArray[np.generic]] = {k: np.concatenate(v) for k, v in parts.items()}
    return SuitePlay(
        suite=name,
        observation=whole["observation"].astype(np.float32, copy=False),
        action=whole["action"].astype(np.float32, copy=False),
        qpos=whole["qpos"].astype(np.float32, copy=False),
        buttons=whole["buttons"].astype(np.int8, copy=False),
        episode=np.repeat(np.arange(len(paths)), lengths),
        hash=digest.hexdigest(),
    )


def suite_chunks(folder: Path, *, horizon: int) -> Transitions:
    """Windows without a reward, for programs that need none.

    Raises:
        ConfigError: There is no data set.
        DataError: A file is damaged, or no episode is long enough.
    """
    play = load_suite(folder)
    starts = window_starts(play.episode, horizon)
    return Transitions(
        features=play.observation[starts],
        chunk=windows(play.action, starts, horizon),
        interface=play.interface(horizon),
        data_hash=play.hash,
        episode=play.episode[starts],
    )


def suite_transitions(
    folder: Path, *, task: int, horizon: int, discount: float, sparse: bool = False
) -> Transitions:
    """Windows with the reward of one task.

    Args:
        folder: Data set of an environment.
        task: Number of the task, counted from 1.
        horizon: Actions per chunk, H.
        discount: gamma.
        sparse: -1 in every state that is not solved, instead of one per condition unmet.

    Raises:
        ConfigError: There is no data set or no such task.
        DataError: A file is damaged, or no episode is long enough.
    """
    play = load_suite(folder)
    reward, solved = play.rewards(task)
    if sparse:
        reward = np.where(solved, 0.0, -1.0).astype(np.float32)
    return from_steps(
        features=play.observation,
        action=play.action,
        state_reward=reward,
        solved=solved,
        episode=play.episode,
        interface=play.interface(horizon),
        discount=discount,
        data_hash=play.hash,
    )


def _suite_of(folder: Path) -> str:
    path = folder / "dataset.json"
    try:
        return str(json.loads(path.read_text())["settings"]["suite"])
    except OSError as error:
        raise ConfigError(
            f"'{path}' must describe play of the suite: {error.strerror}. {MADE_BY}."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{path}' is damaged: {error}. Delete the folder and generate it again."
        ) from error
