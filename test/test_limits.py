import numpy as np
import pytest

from qsteer_ros.errors import DataError
from qsteer_ros.motion.limits import (
    POSITION_MARGIN_RAD,
    STOP_MARGIN_RAD,
    brake,
    check_path,
    check_request,
    check_start,
    shape,
    within,
)
from qsteer_ros.motion.path import peaks, point_velocities, sample, with_tail
from qsteer_ros.motion.robot import JointLimits, RobotFile
from qsteer_ros.types import JointPath

ROBOT = RobotFile.load("robot_ur5e_sim.yaml")
LIMITS = JointLimits(
    lower=np.array([-1.0, -1.0]),
    upper=np.array([1.0, 1.0]),
    velocity=np.array([3.0, 2.0]),
    acceleration=np.array([60.0, 30.0]),
    refuse_factor=2.0,
)
EPS = 1e-9


def keeps_limits(path, limits=LIMITS):
    found = peaks(path)
    return (
        np.all(found.lower >= limits.lower - EPS)
        and np.all(found.upper <= limits.upper + EPS)
        and np.all(found.velocity <= limits.velocity + EPS)
        and np.all(found.acceleration <= limits.acceleration * (1 + EPS) + 1e-6)
    )


def random_start(rng):
    """A state from which the limits can be kept: it can stop in time."""
    velocity = rng.uniform(-LIMITS.velocity, LIMITS.velocity)
    room = velocity**2 / (2 * LIMITS.acceleration) + POSITION_MARGIN_RAD
    lower = LIMITS.lower + np.where(velocity < 0, room, POSITION_MARGIN_RAD)
    upper = LIMITS.upper - np.where(velocity > 0, room, POSITION_MARGIN_RAD)
    return rng.uniform(lower, upper), velocity


def test_a_shaped_path_keeps_every_limit_whatever_is_asked():
    rng = np.random.default_rng(0)
    for _ in range(200):
        points = np.cumsum(rng.normal(0.0, 0.4, (6, 2)), axis=0)
        reference = with_tail(np.arange(6) * 0.05, points, point_velocities(points, 0.05), 0.16)
        position, velocity = random_start(rng)
        path = shape(reference, int(rng.integers(0, 200)) * 1_000_000, position, velocity, LIMITS)
        assert keeps_limits(path)
        np.testing.assert_array_equal(path.positions[0], position)
        np.testing.assert_array_equal(path.velocities[0], velocity)
        assert np.all(path.velocities[-1] == 0.0)


def test_a_shaped_path_follows_what_it_can_reach():
    times_s = np.arange(21) * 0.05
    points = np.column_stack([0.5 * np.sin(2 * times_s), 0.3 * np.cos(2 * times_s) - 0.3])
    reference = with_tail(times_s, points, point_velocities(points, 0.05), 0.16)
    path = shape(reference, 0, np.array([0.1, -0.1]), np.zeros(2), LIMITS)
    for at_ns in range(300_000_000, 1_000_000_000, 50_000_000):
        np.testing.assert_allclose(sample(path, at_ns)[0], sample(reference, at_ns)[0], atol=2e-3)


def test_a_shaped_path_stops_at_the_position_limit():
    reference = with_tail(
        np.array([0.0, 2.0]), np.array([[0.9, 0.0], [5.0, 0.0]]), np.zeros((2, 2)), 0.16
    )
    path = shape(reference, 0, np.array([0.9, 0.0]), np.array([2.0, 0.0]), LIMITS)
    assert keeps_limits(path)
    assert path.positions[-1, 0] == pytest.approx(1.0, abs=0.01)


def test_braking_keeps_every_limit_and_is_quick():
    rng = np.random.default_rng(1)
    for _ in range(100):
        position, velocity = random_start(rng)
        path = brake(position, velocity, LIMITS)
        assert keeps_limits(path)
        assert path.times_s[-1] <= np.max(np.abs(velocity) / LIMITS.acceleration) + 0.0201


def test_braking_at_rest_stays():
    path = brake(np.zeros(2), np.zeros(2), LIMITS)
    np.testing.assert_array_equal(path.positions, np.zeros((1, 2)))


@pytest.mark.parametrize(
    ("end", "speed", "fits"),
    [
        (0.5, 0.0, True),
        (0.99, 0.0, False),  # within the limit, not within its margin
        (0.5, 2.9, True),
        (0.5, 3.1, False),
    ],
)
def test_a_path_is_within_limits_only_if_every_moment_is(end, speed, fits):
    path = JointPath(
        np.array([0.0, 0.4, 0.8]),
        np.array([[0.0, 0.0], [end, 0.0], [0.0, 0.0]]),
        np.array([[0.0, 0.0], [speed, 0.0], [0.0, 0.0]]),
    )
    assert within(path, LIMITS) is fits


def test_an_overshoot_between_good_points_is_seen():
    times_s, positions = np.array([0.0, 0.2, 0.4]), np.tile([0.95, 0.0], (3, 1))
    velocities = np.zeros((3, 2))
    assert within(JointPath(times_s, positions, velocities.copy()), LIMITS)
    velocities[1, 0] = 2.5
    assert not within(JointPath(times_s, positions, velocities), LIMITS)


def points(speed=0.0, joint=2, count=6):
    found = np.zeros((count, 6))
    found[:, joint] = speed * 0.05 * np.arange(count)
    return found


def test_a_request_within_limits_is_not_counted():
    assert not check_request(points(2.9), ROBOT).exceeded


def test_a_request_beyond_a_limit_is_counted_with_its_ratio():
    report = check_request(points(4.5), ROBOT)
    assert report.exceeded
    assert report.velocity[2] == pytest.approx(1.5)


def test_a_jerky_request_is_counted_by_its_acceleration():
    found = points()
    found[3, 1] = 0.1  # 2 rad/s there and back: 80 rad/s^2
    report = check_request(found, ROBOT)
    assert report.acceleration[1] == pytest.approx(80.0 / 60.0)
    assert report.exceeded


def test_a_request_outside_a_position_limit_is_counted():
    found = points() + np.array([0, 0, 3.2, 0, 0, 0])
    assert check_request(found, ROBOT).position_excess_rad[2] == pytest.approx(3.2 - 3.1415)


def test_a_request_far_beyond_a_speed_limit_is_refused():
    with pytest.raises(
        DataError, match=r"may ask 'elbow_joint' for at most 6.00 rad/s, 2 x .*: got 7.00"
    ):
        check_request(points(7.0), ROBOT)


def test_a_request_that_is_not_finite_is_refused():
    found = points()
    found[1, 1] = np.nan
    with pytest.raises(DataError, match="must be finite"):
        check_request(found, ROBOT)


def test_an_arm_outside_its_limits_is_not_started():
    position = np.zeros(6)
    position[2] = 3.3
    with pytest.raises(DataError, match=r"'elbow_joint' must start within .* it is at 3.300"):
        check_start(position, np.zeros(6), ROBOT)


def test_an_arm_that_races_is_not_started():
    velocity = np.zeros(6)
    velocity[5] = -3.5
    with pytest.raises(DataError, match=r"'wrist_3_joint' must start at rest.* moves at -3.50"):
        check_start(np.zeros(6), velocity, ROBOT)


def test_shaped_paths_stop_a_millirad_before_a_position_limit():
    rng = np.random.default_rng(2)
    for _ in range(50):
        position = LIMITS.upper - rng.uniform(STOP_MARGIN_RAD, 0.03, 2)
        reference = with_tail(
            np.arange(6) * 0.05, position + np.arange(6)[:, None] * 0.1, np.full((6, 2), 2.0), 0.16
        )
        path = shape(reference, 0, position, np.zeros(2), LIMITS)
        assert np.all(peaks(path).upper <= LIMITS.upper - STOP_MARGIN_RAD + EPS)


@pytest.mark.parametrize(
    ("what", "distance", "time_s"),
    [("position", 9.0, 9.0), ("speed", 1.0, 0.3), ("acceleration", 0.1, 0.075)],
)
def test_a_path_beyond_a_limit_is_refused_with_the_joint(what, distance, time_s):
    positions = np.array([[0.0], [distance]]) * np.ones(6)
    path = with_tail(np.array([0.0, time_s]), positions, np.zeros((2, 6)), 0.16)
    with pytest.raises(DataError, match=f"a path must keep the {what} limit of '"):
        check_path(path, ROBOT)


def test_a_path_within_the_limits_is_not_refused():
    check_path(with_tail(np.zeros(1), np.zeros((1, 6)), np.full((1, 6), 3.0), 0.16), ROBOT)
