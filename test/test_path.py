import numpy as np
import pytest

from qsteer_ros.motion.path import (
    TimedPath,
    peaks,
    point_velocities,
    sample,
    with_gripper,
    with_tail,
)
from qsteer_ros.types import JointPath

MS = 1_000_000


def random_path(rng, joints=3, points=6):
    times_s = np.cumsum(rng.uniform(0.02, 0.08, points)) - 0.02
    return with_tail(
        times_s, rng.normal(0, 0.3, (points, joints)), rng.normal(0, 2.0, (points, joints)), 0.16
    )


def test_a_path_passes_its_points_at_their_times():
    path = random_path(np.random.default_rng(0))
    for time_s, position, velocity in zip(
        path.times_s, path.positions, path.velocities, strict=True
    ):
        found = sample(path, round(time_s * 1e9))
        np.testing.assert_allclose(found[0], position, atol=1e-8)
        np.testing.assert_allclose(found[1], velocity, atol=1e-6)


def test_positions_and_velocities_are_continuous_to_the_nanosecond():
    path = random_path(np.random.default_rng(1))
    for time_s in path.times_s[1:]:
        knot_ns = round(time_s * 1e9)
        before, after = sample(path, knot_ns - 1), sample(path, knot_ns)
        np.testing.assert_allclose(before[0], after[0], atol=1e-7)
        np.testing.assert_allclose(before[1], after[1], atol=1e-5)


def test_velocities_are_the_slopes_of_positions():
    path = random_path(np.random.default_rng(2))
    for at_ns in range(30 * MS, round(path.times_s[-1] * 1e9), 7 * MS):
        (before, _), (after, _) = sample(path, at_ns - 1000), sample(path, at_ns + 1000)
        np.testing.assert_allclose((after - before) / 2e-6, sample(path, at_ns)[1], atol=1e-3)


def test_a_path_rests_before_its_start_and_after_its_end():
    path = random_path(np.random.default_rng(3))
    start, end = sample(path, -1), sample(path, round(path.times_s[-1] * 1e9) + 1)
    np.testing.assert_array_equal(start[0], path.positions[0])
    np.testing.assert_array_equal(end[0], path.positions[-1])
    assert np.all(start[1] == 0.0)
    assert np.all(end[1] == 0.0)


def test_samples_do_not_alias_the_path():
    path = random_path(np.random.default_rng(4))
    sample(path, -1)[0][:] = 9.0
    assert np.all(path.positions[0] != 9.0)


def test_peaks_are_the_extremes_of_dense_samples():
    rng = np.random.default_rng(5)
    for _ in range(20):
        path = random_path(rng)
        found = peaks(path)
        end_ns = round(path.times_s[-1] * 1e9)
        times = np.linspace(round(path.times_s[0] * 1e9), end_ns, 4001).astype(int)
        positions, velocities = (
            np.array(c) for c in zip(*(sample(path, t) for t in times), strict=True)
        )
        np.testing.assert_allclose(found.lower, positions.min(axis=0), atol=1e-3)
        np.testing.assert_allclose(found.upper, positions.max(axis=0), atol=1e-3)
        np.testing.assert_allclose(found.velocity, np.abs(velocities).max(axis=0), rtol=1e-2)
        steps = np.abs(np.diff(velocities, axis=0)) / np.diff(times * 1e-9)[:, None]
        np.testing.assert_allclose(found.acceleration, steps.max(axis=0), rtol=3e-2)


def test_a_single_point_has_peaks_of_rest():
    found = peaks(JointPath(np.zeros(1), np.ones((1, 2)), np.zeros((1, 2))))
    np.testing.assert_array_equal(found.upper, [1.0, 1.0])
    np.testing.assert_array_equal(found.velocity, [0.0, 0.0])


def test_velocities_of_points_on_a_parabola_are_exact_inside():
    times = np.arange(6) * 0.05
    velocities = point_velocities((times**2)[:, None], 0.05)
    np.testing.assert_allclose(velocities[1:-1, 0], 2.0 * times[1:-1], atol=1e-12)


def test_a_tail_decelerates_evenly_to_rest():
    path = with_tail(np.zeros(1), np.array([[1.0]]), np.array([[2.0]]), 0.16)
    assert path.positions[-1, 0] == pytest.approx(1.0 + 2.0 * 0.16 / 2)
    assert peaks(path).acceleration[0] == pytest.approx(2.0 / 0.16)
    assert path.velocities[-1, 0] == 0.0


def test_a_timed_path_knows_when_it_rests():
    timed = TimedPath(random_path(np.random.default_rng(6)), 5_000 * MS)
    end_ns = 5_000 * MS + round(timed.path.times_s[-1] * 1e9)
    assert timed.end_ns == end_ns
    assert np.all(timed.sample(end_ns)[1] == 0.0)
    assert np.any(timed.sample(end_ns - 1)[1] != 0.0)


def arm(times_s):
    zeros = np.zeros((len(times_s), 2))
    return JointPath(np.asarray(times_s), zeros, zeros.copy())


def test_the_gripper_reaches_its_commands_and_rests_there():
    path = with_gripper(
        arm([0.0, 0.05, 0.1]), np.array([0.0, 0.3, 0.1]), 0.2, 0.0, closed_rad=0.8, rate=24.0
    )
    np.testing.assert_allclose(path.positions[:, -1], [0.2, 0.3, 0.1])
    np.testing.assert_array_equal(path.velocities[:, -1], 0.0)


def test_the_gripper_continues_at_its_present_rate():
    path = with_gripper(
        arm([0.0, 0.05]), np.array([0.0, 0.5]), 0.3, 6.0, closed_rad=0.8, rate=24.0
    )
    assert sample(path, 0)[1][-1] == pytest.approx(6.0)


def test_the_gripper_keeps_stroke_and_rate_whatever_is_asked():
    rng = np.random.default_rng(7)
    for _ in range(300):
        times_s = np.concatenate([[0.0], np.cumsum(rng.uniform(0.002, 0.08, 5))])
        path = with_gripper(
            arm(times_s),
            rng.uniform(-0.5, 1.5, 6),
            rng.uniform(0.0, 0.8),
            rng.uniform(-30.0, 30.0),
            closed_rad=0.8,
            rate=10.0,
        )
        found = peaks(path)
        assert found.lower[-1] >= -1e-12
        assert found.upper[-1] <= 0.8 + 1e-12
        assert found.velocity[-1] <= 10.0 + 1e-9
