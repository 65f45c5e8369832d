"""The features that policies and critics are given."""

from __future__ import annotations

import numpy as np
import pytest

from qsteer_ros.policies.features import (
    CUBE_NAMES,
    FEATURE_NAMES,
    PROPRIO_NAMES,
    proprioception,
    proprioception_rows,
    teacher_features,
)
from qsteer_ros.types import RobotState


class StraightArm:
    """An arm whose tool sits at (0.5, 0.1, 0.2) m, turned by 0.3 rad, whatever the joints."""

    def forward(self, position):
        return np.array([0.5, 0.1, 0.2]), np.eye(3)

    def yaw(self, position):
        return 0.3


def state() -> RobotState:
    return RobotState(
        stamp_ns=0,
        position=np.arange(6) / 10.0,
        velocity=-np.arange(6) / 5.0,
        gripper=0.25,
        gripper_effort=0.5,
    )


def test_there_are_nineteen_measured_numbers_and_eight_about_the_cube() -> None:
    assert len(PROPRIO_NAMES) == 19
    assert len(CUBE_NAMES) == 8
    assert FEATURE_NAMES == PROPRIO_NAMES + CUBE_NAMES
    assert len(set(FEATURE_NAMES)) == 27


def test_proprioception_is_the_written_formula() -> None:
    expected = [
        *(np.arange(6) / 10.0),
        *(-np.arange(6) / 5.0),
        0.75,
        1.0,
        2.0,
        np.cos(0.3),
        np.sin(0.3),
        0.75,
        0.5,
    ]
    found = proprioception(state(), StraightArm())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_cube_is_given_in_the_world_and_as_seen_from_the_tool() -> None:
    proprio = proprioception(state(), StraightArm())[None]
    features = teacher_features(proprio, np.array([[0.325, -0.1, 0.02]]), np.array([0.2]))
    np.testing.assert_array_equal(features[0, :19], proprio[0])
    np.testing.assert_allclose(features[0, 19:22], [-1.0, -1.0, 0.2], atol=1e-6)
    np.testing.assert_allclose(features[0, 22:25], [-1.75, -2.0, -1.8], atol=1e-6)
    np.testing.assert_allclose(features[0, 25:], [np.cos(0.8), np.sin(0.8)], atol=1e-6)


@pytest.mark.parametrize("quarter_turns", [1, 2, 3, -1])
def test_a_quarter_turn_of_the_cube_changes_nothing(quarter_turns: int) -> None:
    proprio = proprioception(state(), StraightArm())[None]
    cube = np.array([[0.4, 0.0, 0.02]])
    one = teacher_features(proprio, cube, np.array([0.2]))
    other = teacher_features(proprio, cube, np.array([0.2 + quarter_turns * np.pi / 2]))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_rows_are_computed_independently() -> None:
    rng = np.random.default_rng(0)
    columns = {
        "position": rng.normal(size=(4, 6)),
        "velocity": rng.normal(size=(4, 6)),
        "tool_xyz": rng.normal(size=(4, 3)),
        "tool_yaw": rng.normal(size=4),
        "gripper": rng.random(4),
        "effort": rng.random(4),
    }
    together = proprioception_rows(**columns)
    alone = proprioception_rows(**{name: column[2:3] for name, column in columns.items()})
    np.testing.assert_array_equal(together[2:3], alone)
