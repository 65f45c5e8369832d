"""Where the cube starts and where it should go: the goals a session can ask for.

The numbers are the package's own order; each goal is one task of OGBench's *cube-single*, which
defines the coordinates (read from the environment, not copied here).
"""

from __future__ import annotations

from dataclasses import dataclass

from qsteer_ros.errors import ConfigError

#: Source: OGBench counts a cube as placed when its centre is this close to the target's.
SUCCESS_DISTANCE_M = 0.04


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes:
        number: How parameters, events and files call it.
        task_id: OGBench's number of the task, counted from 1.
        name: OGBench's name of the task.
        instruction: The goal in words, for policies that read language and for people.
    """

    number: int
    task_id: int
    name: str
    instruction: str


GOALS = {
    goal.number: goal
    for goal in (
        Goal(1, 2, "task2_vertical1", "move the cube away from the robot's base"),
        Goal(2, 1, "task1_horizontal", "move the cube from the left to the right"),
        Goal(3, 4, "task4_diagonal1", "move the cube from the near right to the far left"),
    )
}


def find_goal(number: int) -> Goal:
    """The goal called ``number``.

    Raises:
        ConfigError: There is none.
    """
    if number not in GOALS:
        raise ConfigError(f"goal must be one of {sorted(GOALS)}: got {number}.")
    return GOALS[number]
