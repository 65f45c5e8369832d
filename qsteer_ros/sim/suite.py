"""A public task suite: OGBench's tabletop environments, by name.

``cube-single``, ``cube-double``, ``cube-triple``, ``scene``, ``puzzle-3x3``, ``puzzle-4x4`` and
the other manipulation environments OGBench registers: one UR5e, actions are relative end-effector
moves of 50 ms. Each has five tasks with a goal of its own. The goal is not in the observation:
a critic learns one task, a policy cloned from play knows none.

Environments are made from OGBench's own registration without gymnasium's wrappers (their checks
cost time in every step); the time limit, which is one of those wrappers, is left to the caller as
:attr:`SuiteSpec.max_steps`.

Source: OGBench, arXiv:2410.20092; package ``ogbench``.
"""

from __future__ import annotations

import functools
import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.errors import ConfigError, DataError

os.environ.setdefault("MUJOCO_GL", "egl")

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glfw warns that there is no display; none is needed
        import gymnasium
        import ogbench.manipspace  # noqa: F401 - registers the environments
        from gymnasium.envs.registration import load_env_creator
        from gymnasium.spaces import Box
except ModuleNotFoundError as error:
    raise ConfigError(
        f"the task suite needs the packages mujoco and ogbench: {error}. "
        "Install them with: pip install 'ogbench==1.2.2' 'mujoco==4.0.0'"
    ) from error

Bool = NDArray[np.bool_]

CONTROL_DT_S = 0.05
ACTION_NAMES = ("effector_x", "effector_y", "effector_z", "effector_yaw", "gripper")
ACTION_SCALES = (0.05, 0.05, 0.05, 0.3, 1.0)
"""What a normalised action of 1 asks for: m, m, m, rad, share of the gripper's stroke."""
WITHIN_M = 0.04
"""How near a cube, the drawer or the window must be to its goal."""
FIRST_OBJECT = 14
"""Place in ``qpos`` where the arm's and the gripper's joints end and the objects begin."""


@dataclass(frozen=True)
class SuiteSpec:
    """What is fixed about an environment.

    Attributes:
        name: ``cube-single``, ``scene``, ...
        max_steps: Control steps after which an episode of a task is cut off.
        tasks: How many tasks it has.
    """

    name: str
    max_steps: int
    tasks: int


@dataclass(frozen=True)
class Goal:
    """When a task is solved: every condition at once, whatever the arm does.

    Attributes:
        cubes: Goal of every cube, (n, 3), m; n may be 0.
        buttons: Wanted state of every button, (m,); m may be 0.
        drawer: Wanted joint position of the drawer, m; None where there is none.
        window: Likewise of the window.
    """

    cubes: NDArray[np.float64]
    buttons: NDArray[np.int64]
    drawer: float | None = None
    window: float | None = None

    @property
    def conditions(self) -> int:
        """How many there are, C."""
        slides = sum(position is not None for position in (self.drawer, self.window))
        return len(self.cubes) + len(self.buttons) + slides

    def satisfied(self, qpos: NDArray[np.floating], buttons: NDArray[np.integer]) -> Bool:
        """Which conditions hold in each state.

        Args:
            qpos: Simulator positions, (N, nq).
            buttons: States of the buttons, (N, m).

        Returns:
            (N, C): cubes, buttons, drawer, window, in this order.

        Raises:
            DataError: The states are not those of this environment.
        """
        count = len(self.cubes)
        drawer_at = FIRST_OBJECT + 7 * count + len(self.buttons)
        slides = [position for position in (self.drawer, self.window) if position is not None]
        needed = drawer_at + len(slides)
        if qpos.shape[1] < needed or buttons.shape != (len(qpos), len(self.buttons)):
            raise DataError(
                f"states must have at least {needed} positions and {len(self.buttons)} buttons "
                f"for this goal: got {qpos.shape} and {buttons.shape}. "
                "The data are of another environment."
            )
        first = FIRST_OBJECT + 7 * np.arange(count)[:, None] + np.arange(3)
        apart = np.linalg.norm(qpos[:, first] - self.cubes, axis=-1)
        holds = [apart <= WITHIN_M, buttons == self.buttons]
        for place, position in enumerate(slides):
            holds.append(np.abs(qpos[:, [drawer_at + place]] - position) <= WITHIN_M)
        return np.concatenate(holds, axis=1)


def make(name: str, *, task: int | None = None) -> Any:
    """One environment of the suite; call ``reset(seed=...)`` before anything else.

    Args:
        name: ``cube-single``, ``scene``, ``puzzle-3x3``, ...
        task: Number of the task, counted from 1: the environment then starts in that task's
            initial states, gives its rewards (how many conditions hold, minus how many there
            are) and ends where they all hold, as judged *before* the action. None: the
            environment scripted experts play in, with random scenes and no end.

    Raises:
        ConfigError: There is no such environment or task.
    """
    if task is None:
        return _kind(name)(
            terminate_at_goal=False, mode="data_collection", **_registered(name).kwargs
        )
    _task_info(name, task)
    registered = _registered(f"{name}-singletask-task{task}")
    return _kind(name)(**registered.kwargs)


def spec(name: str) -> SuiteSpec:
    """What is fixed about an environment.

    Raises:
        ConfigError: There is no such environment.
    """
    return SuiteSpec(name, int(_registered(name).max_episode_steps), len(_task_infos(name)))


def goal(name: str, task: int) -> Goal:
    """The goal of a task, read from the environment's own list.

    Raises:
        ConfigError: There is no such environment or task.
    """
    info = _task_info(name, task)
    none = np.empty(0, dtype=np.int64)
    if "goal_xyzs" in info:
        return Goal(np.array(info["goal_xyzs"], dtype=np.float64), none)
    if "goal_button_states" in info:
        return Goal(np.empty((0, 3)), np.array(info["goal_button_states"], dtype=np.int64))
    wanted = info["goal"]
    return Goal(
        np.array(wanted["block_xyzs"], dtype=np.float64),
        np.array(wanted["button_states"], dtype=np.int64),
        drawer=float(wanted["drawer_pos"]),
        window=float(wanted["window_pos"]),
    )


def button_states(env: Any) -> NDArray[np.int64]:
    """States of an environment's buttons, (m,); empty where it has none."""
    states = getattr(env, "_cur_button_states", ())
    return np.array(states, dtype=np.int64)


@functools.cache
def _task_infos(name: str) -> tuple[dict[str, Any], ...]:
    """The environment's own list of tasks; compiles no scene."""
    return tuple(_kind(name)(mode="task", **_registered(name).kwargs).task_infos)


def _task_info(name: str, task: int) -> dict[str, Any]:
    infos = _task_infos(name)
    if not 1 <= task <= len(infos):
        raise ConfigError(f"task of '{name}' must be 1 to {len(infos)}: got {task}.")
    return infos[task - 1]


def _registered(name: str) -> Any:
    identity = f"{name}-v0"
    try:
        registered = gymnasium.spec(identity)
    except gymnasium.error.Error as error:
        raise ConfigError(
            f"the suite has no environment '{name}': {error}. Choose one of {', '.join(names())}."
        ) from error
    if "manipspace" not in str(registered.entry_point):
        raise ConfigError(
            f"'{name}' must be a tabletop environment of OGBench: it is {registered.entry_point}. "
            f"Choose one of {', '.join(names())}."
        )
    return registered


def names() -> tuple[str, ...]:
    """Environments that can be asked for."""
    return tuple(
        identity.removesuffix("-v0")
        for identity, registered in gymnasium.registry.items()
        if "manipspace" in str(registered.entry_point)
        and "singletask" not in identity
        and not identity.startswith("visual-")
    )


@functools.cache
def _kind(name: str) -> Any:
    """OGBench's class of an environment, with every random number decided by the seed."""
    base: Any = load_env_creator(_registered(name).entry_point)

    class Seeded(base):  # type: ignore[misc]
        """OGBench makes a new, unseeded space whenever it is asked for one."""

        _actions: Box | None = None

        @property
        def action_space(self) -> Box:
            if self._actions is None:
                self._actions = Box(-np.ones(5, np.float32), np.ones(5, np.float32))
            return self._actions

        def reset(self, *args: Any, seed: int | None = None, **kwargs: Any) -> Any:
            if seed is not None:
                self._actions = None
                self.action_space.seed(seed)
            return super().reset(*args, seed=seed, **kwargs)

    return Seeded
