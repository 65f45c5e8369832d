"""Many states of one environment of the suite, with one compiled model."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.sim.suite import make


class Worlds:
    """Several states of one environment, stepped in turn.

    The compiled model (170 MB with its meshes) is shared; what changes from state to state is
    not: simulator data, button states, goals, and the damping with which ``scene`` locks its
    drawer and window. Stepping one world leaves the others as they were, to the bit.

    Args:
        name: Environment.
        task: Number of the task.
        count: How many worlds.
    """

    def __init__(self, name: str, task: int, count: int) -> None:
        first = make(name, task=task)
        first.reset(seed=0)
        self._model = first.model
        self._damping = [self._model.dof_damping.copy() for _ in range(count)]
        self._worlds = [_separate(first) for _ in range(count)]

    def __len__(self) -> int:
        return len(self._worlds)

    def reset(self, world: int, *, seed: int) -> NDArray[np.float64]:
        """Put one world into an initial state of its task, decided by ``seed``; (F,)."""
        with _Damping(self._model, self._damping[world]):
            observation, _ = self._worlds[world].reset(seed=seed)
        return np.asarray(observation, dtype=np.float64)

    def step(
        self, world: int, action: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], float, bool]:
        """One control step of one world.

        Args:
            world: Which.
            action: Normalised, (5,).

        Returns:
            Observation after it (F,), reward, and whether the task was solved before the action.
        """
        with _Damping(self._model, self._damping[world]):
            observation, reward, terminated, _, _ = self._worlds[world].step(action)
        return np.asarray(observation, dtype=np.float64), float(reward), bool(terminated)


class _Damping:
    """The model has this damping inside the block; what it becomes there is kept."""

    def __init__(self, model: Any, damping: NDArray[np.float64]) -> None:
        self._model, self._damping = model, damping

    def __enter__(self) -> None:
        self._model.dof_damping[:] = self._damping

    def __exit__(self, *_: object) -> None:
        self._damping[:] = self._model.dof_damping


def _separate(env: Any) -> Any:
    """A copy that shares the compiled model and nothing that steps change."""
    twin = copy.copy(env)  # what steps change beside the data is made anew by each reset
    twin._data = copy.copy(env.data)
    return twin
