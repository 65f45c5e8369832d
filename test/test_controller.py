import dataclasses

import numpy as np
import pytest

from qsteer_ros.errors import ConfigError, DataError, StaleObservation
from qsteer_ros.motion.controller import MIN_GAP_NS, ChunkController, NotFollowing
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

    def check_start(self, position):
        pass


def measured(stamp_ns=0, position=START, gripper=0.0, velocity=0.0):
    return RobotState(stamp_ns, np.array(position), np.full(6, velocity), gripper)


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
    latencies_ms = np.random.default_rng(0).uniform(0.0, min(200, 50 * execute_steps), 150)
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
    rest = held.positions[-1, :6]
    path = control.plan(chunk(dx=-1.0), measured(stamp_ns, rest), stamp_ns, stamp_ns)
    np.testing.assert_allclose(path.positions[0], held.positions[-1])


def test_without_a_path_there_is_nothing_to_hold():
    assert controller().hold(0) is None


def test_a_path_that_has_come_to_rest_is_not_held():
    control = controller()
    control.plan(chunk(dx=1.0), measured(), 0, 10 * MS)
    before = control.commanded
    assert control.hold(before.end_ns) is None
    assert control.hold(before.start_ns - 1) is None  # the clock was set back
    assert control.commanded is before
    assert control.wants(1)
    assert control.hold(before.end_ns - 1) is not None


def test_an_arm_that_is_not_on_its_path_is_not_held():
    control = controller()
    control.plan(chunk(dx=1.0), measured(), 0, 0)
    at = control.commanded.sample(100 * MS)[0][:6]
    assert control.hold(110 * MS, measured(100 * MS, at + 0.11)) is None
    assert control.hold(110 * MS, measured(100 * MS, at + 0.09)) is not None


@pytest.mark.parametrize("stamp_ms", [250, 60_000])
def test_an_arm_that_is_not_where_it_is_commanded_is_not_commanded_on(stamp_ms):
    control = controller()
    control.plan(chunk(dx=1.0), measured(), 0, 60 * MS)
    before, stamp_ns = control.commanded, stamp_ms * MS
    at = before.sample(stamp_ns)[0][:6]
    moved = measured(stamp_ns, at + np.array([0.12, 0, 0, 0, 0, 0]))
    with pytest.raises(
        NotFollowing,
        match=r"'shoulder_pan_joint' must be within 0.1 rad .* 0.120 away.*Deactivate and",
    ):
        control.plan(chunk(), moved, stamp_ns, stamp_ns + 60 * MS)
    assert control.commanded is before
    control.reset()
    path = control.plan(chunk(), moved, stamp_ns, stamp_ns + 60 * MS)
    np.testing.assert_allclose(path.positions[0, :6], moved.position)


def test_after_a_path_the_next_starts_where_the_arm_rests_and_keeps_squeezing():
    control = controller()
    control.plan(chunk(dx=1.0, grip=1.0), measured(), 0, 60 * MS)
    stamp_ns = control.commanded.end_ns
    rest = control.commanded.path.positions[-1, :6] + 0.004
    early = measured(stamp_ns, rest, gripper=0.5, velocity=0.06)
    with pytest.raises(DataError, match="must start at rest"):
        control.plan(chunk(), early, stamp_ns, stamp_ns + 60 * MS)
    path = control.plan(chunk(), measured(stamp_ns, rest, 0.5), stamp_ns, stamp_ns + 60 * MS)
    np.testing.assert_allclose(path.positions[0, :6], rest)
    assert path.positions[0, 6] == pytest.approx(ROBOT.gripper_closed_rad)
    np.testing.assert_array_equal(path.velocities[0], np.zeros(7))


def test_an_arm_that_moves_is_not_taken_over():
    with pytest.raises(DataError, match=r"must start at rest, below 0.05 rad/s: it moves at 0.06"):
        controller().plan(chunk(), measured(velocity=0.06), 0, 60 * MS)
    path = controller().plan(chunk(dx=1.0), measured(velocity=0.04), 0, 60 * MS)
    np.testing.assert_array_equal(path.velocities[0], np.zeros(7))


def test_an_observation_from_before_the_last_path_is_held_against_the_path_then():
    control = controller(1)
    control.plan(chunk(dx=1.0), measured(), 0, 0)
    before = control.commanded
    at = [before.sample(ms * MS)[0][:6] for ms in (50, 100)]
    control.plan(chunk(dx=1.0), measured(50 * MS, at[0]), 50 * MS, 200 * MS)
    control.plan(chunk(dx=1.0), measured(100 * MS, at[1]), 100 * MS, 210 * MS)
    np.testing.assert_allclose(control.report.tracking_error_rad, 0.0, atol=1e-12)


def test_a_path_does_not_take_effect_before_the_one_it_follows():
    control = controller(1)
    control.plan(chunk(dx=1.0), measured(), 0, 150 * MS)
    with pytest.raises(StaleObservation, match="take effect after the one before: it would 50 ms"):
        control.plan(chunk(dx=1.0), measured(50 * MS), 50 * MS, 100 * MS)


@pytest.mark.parametrize(
    ("outside", "tilt", "sentence"),
    [
        (0.055, 0.0, r"within one action of 'workspace': .* 0.055 m outside. Move the arm into"),
        (0.0, 0.12, "must start pointing down, within 0.1 rad: it is tilted by 0.12. Move the"),
    ],
)
def test_a_tool_that_the_first_motion_would_swing_is_not_moved(outside, tilt, sentence):
    top = np.array([0.4, 0.0, ROBOT.workspace_upper[2] + outside])
    position = KINEMATICS.inverse(top, tool_down(0.0), HOME) + np.array([0, 0, 0, tilt, 0, 0])
    with pytest.raises(DataError, match=sentence):
        controller().plan(chunk(), measured(position=position), 0, 0)


def test_a_tool_nearly_upright_and_nearly_in_the_workspace_is_moved():
    top = np.array([0.4, 0.0, ROBOT.workspace_upper[2] + 0.04])
    position = KINEMATICS.inverse(top, tool_down(0.0), HOME) + np.array([0, 0, 0, 0.05, 0, 0])
    assert controller().plan(chunk(), measured(position=position), 0, 0) is not None


def test_a_path_beyond_a_limit_is_not_given_out(monkeypatch):
    control = controller()
    monkeypatch.setattr("qsteer_ros.motion.controller.within", lambda path, limits: True)
    slow = dataclasses.replace(ROBOT.limits, velocity=np.full(6, 0.5), refuse_factor=20)
    control = controller(robot=dataclasses.replace(ROBOT, limits=slow))
    with pytest.raises(DataError, match="a path must keep the speed limit of"):
        control.plan(chunk(dx=1.0, dy=1.0), measured(), 0, 0)
    assert not control.commanding


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
    elsewhere = START + np.array([0.1, 0, 0, 0, 0, 0])
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
