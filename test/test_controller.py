import dataclasses

import numpy as np
import pytest

from qsteer_ros.errors import ConfigError, DataError, StaleObservation
from qsteer_ros.motion.controller import MIN_GAP_NS, ChunkController
from qsteer_ros.motion.decoder import make_decoder
from qsteer_ros.motion.kinematics import Kinematics, tool_down
from qsteer_ros.motion.path import peaks, sample
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.sim.follower import Trajectory, TrajectoryFollower
from qsteer_ros.types import RobotState

ROBOT = RobotFile.load("robot_ur5e_sim.yaml")
KINEMATICS = Kinematics(ROBOT)
HOME = np.array([-np.pi / 2, -np.pi / 2, np.pi / 2, -np.pi / 2, -np.pi / 2, 0.0])
START = KINEMATICS.inverse(np.array([0.4, 0.0, 0.2]), tool_down(0.0), HOME)
MS = 1_000_000
DT = ROBOT.control_dt_ns


def controller(execute_steps=5, robot=ROBOT):
    return ChunkController(robot, make_decoder(robot, Kinematics(robot)), execute_steps)


class Still:
    """Decodes every chunk to staying where the arm is."""

    def decode(self, chunk, state):
        return np.tile(np.append(state.position, 0.0), (len(chunk), 1))


def measured(stamp_ns=0, position=START, gripper=0.0):
    return RobotState(stamp_ns, np.array(position), np.zeros(6), gripper)


def chunk(dx=0.0, dy=0.0, dz=0.0, dyaw=0.0, grip=0.0):
    return np.tile([dx, dy, dz, dyaw, grip], (5, 1))


def keeps_limits(path):
    found, limits = peaks(path), ROBOT.limits
    arm = slice(0, -1)
    return (
        np.all(found.lower[arm] >= limits.lower)
        and np.all(found.upper[arm] <= limits.upper)
        and np.all(found.velocity[arm] <= limits.velocity + 1e-9)
        and np.all(found.acceleration[arm] <= limits.acceleration + 1e-6)
        and found.lower[-1] >= -1e-12
        and found.upper[-1] <= ROBOT.gripper_closed_rad + 1e-12
        and found.velocity[-1] <= ROBOT.gripper_rate_rad_per_s + 1e-6
    )


def test_without_latency_the_path_passes_every_decoded_point():
    control = controller()
    path = control.plan(chunk(dx=0.3, dyaw=0.3), measured(), 0, 0)
    for k, point in enumerate(control.report.points):
        np.testing.assert_allclose(sample(path, (k + 1) * DT)[0], point, atol=1e-9)


@pytest.mark.parametrize("latency_ms", [0, 60])
def test_the_gripper_is_commanded_at_the_time_of_its_action(latency_ms):
    control = controller()
    commands = chunk()
    commands[:, 4] = [0.1, 0.2, -0.1, 0.3, 0.0]
    path = control.plan(commands, measured(), 0, latency_ms * MS)
    for k, point in enumerate(control.report.points[2:], start=3):
        assert sample(path, k * DT - latency_ms * MS)[0][-1] == pytest.approx(point[-1], abs=1e-6)
    assert path.positions[-1, -1] == pytest.approx(control.report.points[-1, -1])


def test_the_first_path_starts_at_the_measured_state():
    path = controller().plan(chunk(dx=1.0), measured(gripper=0.25), 7 * MS, 30 * MS)
    np.testing.assert_allclose(path.positions[0], [*START, 0.25 * 0.8])
    np.testing.assert_array_equal(path.velocities[0], np.zeros(7))
    assert path.times_s[0] == 0.0


def test_every_path_ends_at_rest():
    path = controller().plan(chunk(dx=1.0, dz=-1.0), measured(), 0, 0)
    np.testing.assert_array_equal(path.velocities[-1], np.zeros(7))


@pytest.mark.parametrize(
    ("latency_ms", "skipped"), [(0, 0), (39, 0), (40, 1), (60, 1), (89, 1), (90, 2)]
)
def test_points_that_are_due_too_soon_are_skipped(latency_ms, skipped):
    assert MIN_GAP_NS == 10 * MS
    control = ChunkController(ROBOT, Still(), 5)
    control.plan(chunk(), measured(), 0, latency_ms * MS)
    assert control.report.skipped == skipped


def follow(latencies_ms, seed, execute_steps=5):
    """Random chunks on an arm that does what it is told; yields controller, path and times."""
    rng = np.random.default_rng(seed)
    control, stamp_ns, position, gripper = controller(execute_steps), 0, START, 0.0
    for latency_ms in latencies_ms:
        effective_ns = stamp_ns + int(latency_ms * MS)
        random_chunk = np.clip(rng.normal(0.0, 0.6, (5, 5)) + rng.normal(0.0, 0.6, 5), -1, 1)
        before = control.commanded
        path = control.plan(
            random_chunk, measured(stamp_ns, position, gripper), stamp_ns, effective_ns
        )
        yield control, before, path, effective_ns
        stamp_ns += execute_steps * DT
        due = control.commanded.sample(stamp_ns)[0]
        position, gripper = due[:-1], due[-1] / ROBOT.gripper_closed_rad


@pytest.mark.parametrize("execute_steps", [3, 5])
def test_paths_continue_one_another_and_keep_the_limits_at_any_latency(execute_steps):
    latencies_ms = np.random.default_rng(0).uniform(0.0, 200.0, 150)
    for control, before, path, effective_ns in follow(latencies_ms, 1, execute_steps):
        assert keeps_limits(path)
        if before is not None:
            position, velocity = before.sample(effective_ns)
            np.testing.assert_allclose(path.positions[0], position, atol=1e-12)
            # The gripper's rate may be reduced, so that its command stays within the stroke.
            np.testing.assert_allclose(path.velocities[0, :6], velocity[:6], atol=1e-9)
        assert control.commanded.start_ns == effective_ns


def test_the_controller_that_executes_them_sees_no_jump():
    follower = TrajectoryFollower(ROBOT.path_joints)
    follower.hold(np.append(START, 0.0), 0)
    now_ns, last = 0, follower.sample(0)
    for _, _, path, effective_ns in follow(np.random.default_rng(2).uniform(10, 100, 60), 3):
        arrival_ns = effective_ns - 3 * MS
        while now_ns < arrival_ns:
            now_ns += MS
            state = follower.sample(now_ns)
            assert np.abs(state[0] - last[0])[:6].max() <= 3.0 * 1e-3 + 1e-4
            assert np.abs(state[1] - last[1])[:6].max() <= 60.0 * 1e-3 + 0.05
            last = state
        assert (
            follower.accept(Trajectory.from_path(path, ROBOT.path_joints, effective_ns), now_ns)
            is None
        )


def test_late_chunks_are_caught_up_with_inside_the_limits():
    reports = [control.report for control, _, _, _ in follow(np.full(80, 150.0), 4)]
    assert any(r.shaped or r.skipped > 3 for r in reports)


def test_a_chunk_beyond_the_limits_is_shaped_and_counted():
    slow = dataclasses.replace(
        ROBOT, limits=dataclasses.replace(ROBOT.limits, velocity=np.full(6, 0.5), refuse_factor=20)
    )
    control = controller(robot=slow)
    path = control.plan(chunk(dx=1.0, dy=1.0), measured(), 0, 0)
    assert control.report.shaped
    assert control.report.limits.exceeded
    assert peaks(path).velocity[:-1].max() <= 0.5 + 1e-9
    assert np.linalg.norm(path.positions[-1] - path.positions[0]) > 0.05


def test_a_chunk_far_beyond_the_limits_is_refused_and_changes_nothing():
    slow = dataclasses.replace(
        ROBOT, limits=dataclasses.replace(ROBOT.limits, velocity=np.full(6, 0.2))
    )
    control = controller(robot=slow)
    with pytest.raises(DataError, match="a chunk may ask"):
        control.plan(chunk(dx=1.0, dy=1.0), measured(), 0, 0)
    assert not control.commanding
    assert control.wants(0)


def test_a_chunk_that_is_not_finite_changes_nothing():
    control = controller()
    control.plan(chunk(dx=1.0), measured(), 0, 0)
    before, report = control.commanded, control.report
    bad = chunk()
    bad[3, 2] = np.nan
    with pytest.raises(DataError, match="chunk must be finite"):
        control.plan(bad, measured(5 * DT), 5 * DT, 5 * DT)
    assert control.commanded is before
    assert control.report is report


def test_a_chunk_that_is_over_before_it_takes_effect_is_refused():
    with pytest.raises(StaleObservation, match=r"a chunk of 5 points .* would 245 ms after"):
        controller().plan(chunk(), measured(), 0, 245 * MS)


def test_a_path_cannot_take_effect_before_its_observation():
    with pytest.raises(DataError, match=r"cannot take effect 1.0 ms before its observation"):
        controller().plan(chunk(), measured(5 * MS), 5 * MS, 4 * MS)


def test_an_arm_outside_its_limits_is_not_moved():
    position = START + np.array([0, 0, 5.0, 0, 0, 0])
    with pytest.raises(DataError):
        controller().plan(chunk(), measured(position=position), 0, 0)


@pytest.mark.parametrize("execute_steps", [1, 4, 5])
def test_the_next_observation_is_wanted_to_the_nanosecond(execute_steps):
    control = controller(execute_steps)
    assert control.wants(-(10**15))
    control.plan(chunk(), measured(3), 3, 3)
    due_ns = 3 + execute_steps * DT
    assert not control.wants(due_ns - 1)
    assert control.wants(due_ns)


def test_no_steps_to_execute_are_refused():
    with pytest.raises(ConfigError, match="'execute_steps' must be at least 1: got 0"):
        controller(0)


def test_a_hold_decelerates_from_what_is_commanded():
    control = controller()
    control.plan(chunk(dx=1.0, dyaw=1.0), measured(), 0, 0)
    at_ns = 130 * MS
    position, velocity = control.commanded.sample(at_ns)
    assert np.abs(velocity).max() > 0.5
    path = control.hold(at_ns)
    np.testing.assert_allclose(path.positions[0], position)
    np.testing.assert_allclose(path.velocities[0, :6], velocity[:6])
    assert np.all(path.velocities[-1] == 0.0)
    assert path.times_s[-1] <= 0.2
    assert keeps_limits(path)
    assert control.commanded.start_ns == at_ns


def test_a_hold_keeps_the_gripper_squeezing():
    control = controller()
    control.plan(chunk(grip=1.0), measured(), 0, 0)
    path = control.hold(5 * DT)
    np.testing.assert_allclose(path.positions[:, -1], ROBOT.gripper_closed_rad)


def test_after_a_hold_any_observation_is_wanted_and_the_path_goes_on_from_it():
    control = controller()
    control.plan(chunk(dx=1.0), measured(), 0, 0)
    held = control.hold(100 * MS)
    assert control.wants(1)
    stamp_ns = 400 * MS
    path = control.plan(chunk(dx=-1.0), measured(stamp_ns), stamp_ns, stamp_ns)
    np.testing.assert_allclose(path.positions[0], held.positions[-1])


def test_a_hold_without_a_path_is_refused():
    with pytest.raises(DataError, match="a hold needs a commanded path"):
        controller().hold(0)


def test_a_hold_near_a_position_limit_stops_inside_it():
    tight = dataclasses.replace(
        ROBOT.limits,
        upper=START + np.array([0.25, 6, 6, 6, 6, 6]),
        lower=START - np.array([0.25, 6, 6, 6, 6, 6]),
    )
    robot = dataclasses.replace(ROBOT, limits=tight)
    control = controller(robot=robot)
    control.plan(chunk(dy=1.0), measured(), 0, 0)
    for at_ns in range(0, 400 * MS, 20 * MS):
        other = controller(robot=robot)
        other.plan(chunk(dy=1.0), measured(), 0, 0)
        found = peaks(other.hold(at_ns))
        assert np.all(found.upper[:-1] <= tight.upper)
        assert np.all(found.lower[:-1] >= tight.lower)


def test_a_reset_forgets_what_was_commanded():
    control = controller()
    control.plan(chunk(dx=1.0), measured(), 0, 0)
    control.reset()
    assert not control.commanding
    assert control.report is None
    elsewhere = START + 0.1
    path = control.plan(chunk(), measured(0, elsewhere), 0, 0)
    np.testing.assert_allclose(path.positions[0, :6], elsewhere)


def test_the_tracking_error_is_measured_minus_commanded():
    control = controller()
    control.plan(chunk(dx=0.5), measured(), 0, 0)
    due = control.commanded.sample(5 * DT)[0][:6]
    control.plan(chunk(), measured(5 * DT, due + 0.004), 5 * DT, 5 * DT)
    np.testing.assert_allclose(control.report.tracking_error_rad, 0.004, atol=1e-9)


def test_the_tool_never_dives_below_the_workspace_by_more_than_a_centimetre():
    lowest = 1.0
    for height in np.linspace(0.02, 0.12, 11):
        q = KINEMATICS.inverse(np.array([0.4, 0.0, height]), tool_down(0.0), HOME)
        path = controller().plan(chunk(dz=-1.0), measured(position=q), 0, 0)
        for at_ns in range(0, round(path.times_s[-1] * 1e9), 10 * MS):
            lowest = min(lowest, KINEMATICS.forward(sample(path, at_ns)[0][:6])[0][2])
    assert lowest > ROBOT.workspace_lower[2] - 0.01
