"""Rules of the trajectory follower, one by one; times are exact integers throughout."""

import re

import numpy as np
import pytest

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.sim.follower import Trajectory, TrajectoryFollower, TrajectoryPoint
from qsteer_ros.types import JointPath

JOINTS = ("shoulder", "elbow")
MS = 1_000_000
NOW = 10_000 * MS


def point(ms, positions, velocities=None, accelerations=None):
    def array(values):
        return None if values is None else np.asarray(values, dtype=np.float64)

    return TrajectoryPoint(ms * MS, array(positions), array(velocities), array(accelerations))


def trajectory(*points, joints=JOINTS, stamp_ns=NOW, **fields):
    return Trajectory(tuple(joints), tuple(points), stamp_ns, **fields)


@pytest.fixture
def follower():
    follower = TrajectoryFollower(JOINTS)
    follower.hold(np.array([1.0, -1.0]), NOW)
    return follower


def position(follower, now_ns):
    return follower.sample(now_ns)[0]


def velocity(follower, now_ns):
    return follower.sample(now_ns)[1]


def test_a_held_position_is_commanded_at_rest_at_any_time(follower):
    for now_ns in (0, NOW - 1, NOW, NOW + 10**12):
        np.testing.assert_array_equal(position(follower, now_ns), [1.0, -1.0])
        np.testing.assert_array_equal(velocity(follower, now_ns), [0.0, 0.0])


def test_positions_alone_are_joined_by_straight_lines(follower):
    assert follower.accept(trajectory(point(0, [0, 0]), point(100, [1, -2])), NOW) is None
    np.testing.assert_allclose(position(follower, NOW + 25 * MS), [0.25, -0.5], atol=1e-15)
    np.testing.assert_allclose(velocity(follower, NOW + 25 * MS), [10.0, -20.0], rtol=1e-14)


def test_positions_and_velocities_are_joined_by_the_cubic_through_both(follower):
    # x(u) = 2 u^3 - u^2 + 3 u + 1 on [0, 0.5 s], a cubic, is its own interpolant.
    def cubic(u):
        return 2 * u**3 - u**2 + 3 * u + 1

    def slope(u):
        return 6 * u**2 - 2 * u + 3

    accepted = follower.accept(
        trajectory(
            point(0, [cubic(0.0), 0], [slope(0.0), 0]),
            point(500, [cubic(0.5), 0], [slope(0.5), 0]),
            point(700, [2, 0], [0, 0]),
        ),
        NOW,
    )
    assert accepted is None
    for ms in (0, 1, 125, 333, 499):
        found, speed = follower.sample(NOW + ms * MS)
        assert found[0] == pytest.approx(cubic(ms * 1e-3), abs=1e-13)
        assert speed[0] == pytest.approx(slope(ms * 1e-3), abs=1e-12)


def test_accelerations_at_both_ends_make_the_quintic(follower):
    coefficients = [0.3, -0.2, 0.5, 1.0, -2.0, 0.7]  # degree 5 first
    derivative, second = np.polyder(coefficients), np.polyder(coefficients, 2)

    def at(seconds):
        return [[np.polyval(p, seconds), 0.0] for p in (coefficients, derivative, second)]

    accepted = follower.accept(
        trajectory(point(0, *at(0.0)), point(400, *at(0.4)), point(600, [1, 0], [0, 0], [0, 0])),
        NOW,
    )
    assert accepted is None
    for ms in (0, 7, 200, 399):
        found, speed = follower.sample(NOW + ms * MS)
        assert found[0] == pytest.approx(np.polyval(coefficients, ms * 1e-3), abs=1e-13)
        assert speed[0] == pytest.approx(np.polyval(derivative, ms * 1e-3), abs=1e-12)


def test_a_segment_with_velocities_at_one_end_only_is_straight(follower):
    assert follower.accept(trajectory(point(0, [0, 0], [5, 5]), point(100, [1, 1])), NOW) is None
    np.testing.assert_allclose(position(follower, NOW + 50 * MS), [0.5, 0.5], atol=1e-15)


def test_velocity_is_the_derivative_of_position_along_the_whole_motion(follower):
    follower.accept(
        trajectory(
            point(20, [0.9, -0.8], [1, 1]), point(70, [1.2, 0], [0, 2]), point(130, [1, 1], [0, 0])
        ),
        NOW,
    )
    for ms in range(1, 129):
        if ms in (20, 70):
            continue
        now_ns, bump_ns = NOW + ms * MS, 1_000
        numeric = (position(follower, now_ns + bump_ns) - position(follower, now_ns - bump_ns)) / (
            2e-9 * bump_ns
        )
        np.testing.assert_allclose(velocity(follower, now_ns), numeric, atol=1e-6)


def test_stamp_zero_starts_on_arrival(follower):
    follower.accept(trajectory(point(0, [0, 0]), point(100, [1, 1]), stamp_ns=0), NOW)
    np.testing.assert_allclose(position(follower, NOW + 40 * MS), [0.4, 0.4], atol=1e-15)


def test_a_new_trajectory_replaces_the_running_one_as_a_whole(follower):
    follower.accept(trajectory(point(0, [0, 0]), point(1000, [10, 10])), NOW)
    later = NOW + 500 * MS
    follower.accept(trajectory(point(0, [-1, -1]), point(100, [-2, -2]), stamp_ns=later), later)
    np.testing.assert_array_equal(position(follower, later), [-1.0, -1.0])
    np.testing.assert_array_equal(position(follower, NOW + 1000 * MS), [-2.0, -2.0])


def test_points_before_now_are_skipped_without_a_ramp(follower):
    stamp_ns = NOW - 60 * MS
    sent = trajectory(*(point(50 * k, [k, -k]) for k in range(4)), stamp_ns=stamp_ns)
    assert follower.accept(sent, NOW) is None
    np.testing.assert_allclose(position(follower, NOW), [1.2, -1.2], atol=1e-14)


def test_before_the_first_point_it_interpolates_from_the_commanded_state_on_arrival(follower):
    follower.accept(trajectory(point(0, [0, 0]), point(1000, [1, 1])), NOW)
    later = NOW + 500 * MS  # commanded: 0.5 rad at 1 rad/s
    sent = trajectory(point(100, [0.8, 0.8], [0, 0]), stamp_ns=later)
    assert follower.accept(sent, later) is None
    found, speed = follower.sample(later)
    np.testing.assert_allclose(found, [0.5, 0.5], atol=1e-15)
    np.testing.assert_allclose(speed, [1.0, 1.0], atol=1e-12)
    # The cubic from (0.5, 1) to (0.8, 0) over 0.1 s, half-way: mean of the ends + T/8 * (v0 - v1).
    np.testing.assert_allclose(
        position(follower, later + 50 * MS), 2 * [0.65 + 0.1 / 8], atol=1e-12
    )


def test_before_a_first_point_without_velocities_it_goes_straight(follower):
    follower.accept(trajectory(point(100, [2.0, 0.0])), NOW)
    np.testing.assert_allclose(position(follower, NOW + 25 * MS), [1.25, -0.75], atol=1e-15)


def test_the_last_point_is_held_from_its_nanosecond_on(follower):
    follower.accept(trajectory(point(0, [0, 0]), point(100, [1, 2])), NOW)
    end_ns = NOW + 100 * MS
    assert follower.end_ns == end_ns
    np.testing.assert_allclose(velocity(follower, end_ns - 1), [10.0, 20.0], rtol=1e-12)
    for now_ns in (end_ns, end_ns + 1, end_ns + 10**13):
        np.testing.assert_array_equal(position(follower, now_ns), [1.0, 2.0])
        np.testing.assert_array_equal(velocity(follower, now_ns), [0.0, 0.0])


def test_each_point_is_met_on_its_exact_nanosecond(follower):
    follower.accept(
        trajectory(*(point(50 * k, [k * 0.1, k], [k % 5 and 0.3, 0]) for k in range(6))), NOW
    )
    for k in range(6):
        np.testing.assert_array_equal(position(follower, NOW + 50 * k * MS), [k * 0.1, k])


def test_joints_are_matched_by_name_whatever_their_order(follower):
    follower.accept(trajectory(point(0, [7, 8]), joints=("elbow", "shoulder")), NOW)
    np.testing.assert_array_equal(position(follower, NOW), [8.0, 7.0])


def test_a_trajectory_that_ends_now_is_accepted_and_one_nanosecond_ago_refused(follower):
    sent = trajectory(point(50, [0, 0]), stamp_ns=NOW - 50 * MS)
    assert follower.refusal(sent, NOW) is None
    reason = follower.accept(sent, NOW + 1)
    assert reason == "a trajectory must not end in the past: it ended 0.000000001 s ago."


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (trajectory(), "must have points: found none"),
        (trajectory(point(0, [0]), joints=("elbow",)), r"\['shoulder'\] missing"),
        (trajectory(point(0, [0, 0]), joints=("elbow", "knee")), r"found \['knee'\]"),
        (trajectory(point(0, [0, 0, 0]), joints=("elbow", *JOINTS)), "named once"),
        (trajectory(point(0, [0, 0], [0, 1e-3])), "'elbow' is 0.001 rad/s"),
        (
            trajectory(point(50, [0, 0]), point(50, [1, 1])),
            "point 0 is due at 0.050000000 s and point 1",
        ),
        (trajectory(point(50, [0, 0]), point(20, [1, 1])), "strictly increase"),
        (trajectory(point(0, [0, np.nan])), "positions must be finite: point 0, joint 'elbow'"),
        (trajectory(point(0, [0, 0], [np.inf, 0]), point(1, [0, 0])), "velocities must be finite"),
        (trajectory(point(0, [0])), r"positions of point 0 must have shape \(2,\): found \(1,\)"),
        (trajectory(point(0, [0, 0], [0])), "velocities of point 0 must have shape"),
        (trajectory(point(0, [0, 0]), has_effort=True), "effort entries must be empty"),
    ],
)
def test_a_refusal_says_why_and_leaves_the_running_motion_alone(follower, sent, reason):
    follower.accept(trajectory(point(0, [0, 0]), point(1000, [1, 1])), NOW)
    assert re.search(reason, follower.accept(sent, NOW))
    np.testing.assert_allclose(position(follower, NOW + 500 * MS), [0.5, 0.5], atol=1e-15)


def test_a_last_velocity_below_float_epsilon_counts_as_rest(follower):
    assert follower.refusal(trajectory(point(0, [0, 0], [1e-7, 0])), NOW) is None


def test_a_joint_path_says_the_same_as_the_trajectory_made_from_it(follower):
    path = JointPath(
        np.array([0.05, 0.1]), np.array([[1.0, 0.0], [2.0, 1.0]]), np.array([[3.0, 1.0], [0, 0]])
    )
    made = Trajectory.from_path(path, JOINTS, NOW)
    assert [p.time_from_start_ns for p in made.points] == [50 * MS, 100 * MS]
    assert follower.accept(made, NOW) is None
    np.testing.assert_array_equal(position(follower, NOW + 50 * MS), [1.0, 0.0])
    np.testing.assert_array_equal(velocity(follower, NOW + 50 * MS), [3.0, 1.0])


def test_what_is_handed_out_is_not_the_followers_own_memory(follower):
    position(follower, NOW)[:] = 99.0
    np.testing.assert_array_equal(position(follower, NOW), [1.0, -1.0])


def test_joints_must_be_distinct_and_a_held_position_finite(follower):
    with pytest.raises(ConfigError, match="distinct and not empty"):
        TrajectoryFollower(["elbow", "elbow"])
    with pytest.raises(DataError, match="2 finite numbers"):
        follower.hold(np.array([0.0, np.nan]), NOW)
