from __future__ import annotations

import numpy as np
import pytest

from qsteer_ros.errors import DataError
from qsteer_ros.replay.divergence import compare
from qsteer_ros.replay.reader import JointTrack

JOINTS = ("pan", "lift")


def track(stamps: list[int], position: list[list[float]]) -> JointTrack:
    values = np.array(position, dtype=np.float64)
    return JointTrack(np.array(stamps, dtype=np.int64), values, 0 * values, 0 * values)


def test_states_are_compared_at_the_same_moment_after_the_shift():
    logged = track([10, 20, 30], [[0.0, 0.0], [0.1, 0.0], [0.2, 0.0]])
    repeated = track([110, 120, 130], [[0.0, 0.0], [0.1, 0.3], [0.2, 0.0]])
    found = compare(JOINTS, logged, repeated, 100)
    assert (found.worst_joint, found.worst_rad) == ("lift", 0.3)
    assert found.worst_at_s == pytest.approx(10e-9)
    assert found.largest_rad == (0.0, 0.3)
    assert found.rms_rad[1] == pytest.approx(0.3 / np.sqrt(3))


def test_states_that_were_not_met_are_counted_and_left_out():
    logged = track([10, 20, 30], [[0.0, 0.0], [9.0, 0.0], [0.2, 0.0]])
    found = compare(JOINTS, logged, track([10, 30, 40], [[0.0, 0.0], [0.2, 0.0], [7.0, 7.0]]), 0)
    assert (found.compared, found.unmatched, found.worst_rad) == (2, 1, 0.0)


def test_runs_without_a_common_moment_are_refused():
    with pytest.raises(DataError, match="must share stamps with the log: none of 1"):
        compare(JOINTS, track([10], [[0.0, 0.0]]), track([11], [[0.0, 0.0]]), 0)
