"""The inference thread and its watch, with a fake policy and a clock that the test turns."""

import numpy as np
import pytest

pytest.importorskip("rclpy")

from policy_bench import MS, ROBOT, START

from qsteer_ros.errors import DataError
from qsteer_ros.motion.path import peaks
from qsteer_ros.nodes.messages import ERROR, OK, STALE, WARN
from qsteer_ros.nodes.policy_parameters import PolicyParameters
from qsteer_ros.policies.bookkeeping import chunk_seed
from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.types import JointPath

pytestmark = pytest.mark.ros


def test_nothing_is_asked_or_sent_before_activation(bench):
    one = bench()
    one.observe(1000)
    one.loop.watch()
    one.loop.activate()
    one.observe(1050)
    one.answered(1)
    assert one.steered.asked == [(1050 * MS, chunk_seed(7, 0))]


def test_observations_from_before_the_activation_are_not_answered(bench):
    one = bench()
    one.observe(990)
    one.now_ns = 1000 * MS
    considered, look = [], one.assembler.newest_stamp_ns
    one.assembler.newest_stamp_ns = lambda: considered.append(look()) or considered[-1]
    one.loop.activate()
    one.loop.notify()
    one.until(lambda: 990 * MS in considered, "a look at what is there")
    one.observe(1000)
    one.answered(1)
    assert [stamp for stamp, _ in one.steered.asked] == [1000 * MS]


def test_a_path_takes_effect_its_lead_after_it_is_sent(bench):
    one = bench(lead_s=0.02)
    one.loop.activate()
    one.observe(1000)
    one.answered(1)
    path, stamp_ns = one.paths[0]
    assert stamp_ns == 1020 * MS
    assert path.times_s[0] == 0.0
    assert np.all(path.velocities[-1] == 0.0)


def test_the_next_observation_is_answered_after_the_executed_steps(bench):
    one = bench(execute_steps=2)
    one.loop.activate()
    for at_ms in range(1000, 1301, 50):
        one.observe(at_ms)
        if (at_ms - 1000) % 100 == 0:
            one.answered(1 + (at_ms - 1000) // 100)
    assert [r.stamp_ns for r in one.records] == [1000 * MS, 1100 * MS, 1200 * MS, 1300 * MS]


def test_noise_follows_from_the_seed_and_the_number_of_the_chunk(bench):
    one = bench(execute_steps=1)
    one.loop.activate()
    for k in range(3):
        one.observe(1000 + 50 * k)
        one.answered(k + 1)
    assert [seed for _, seed in one.steered.asked] == [chunk_seed(7, k) for k in range(3)]
    one.loop.activate()
    one.observe(1200)
    one.answered(4)
    assert one.steered.asked[-1][1] == chunk_seed(7, 0)


def test_setting_the_seed_starts_the_numbers_again(bench):
    one = bench(execute_steps=1)
    one.loop.activate()
    one.observe(1000)
    one.answered(1)
    one.loop.revise(one.parts, PolicyParameters(seed=9, execute_steps=1), restart=True)
    one.observe(1050)
    one.answered(2)
    assert one.steered.asked[-1][1] == chunk_seed(9, 0)


def test_setting_the_seed_while_the_first_chunk_is_in_work_skips_no_number(bench):
    one = bench(execute_steps=1)
    one.loop.activate()
    one.steered.gate.clear()
    one.observe(1000)
    one.until(lambda: one.steered.asked, "the first question")
    one.loop.revise(one.parts, PolicyParameters(seed=9, execute_steps=1), restart=True)
    one.steered.gate.set()
    one.answered(1)
    one.observe(1050)
    one.answered(2)
    assert one.steered.asked[-1][1] == chunk_seed(9, 0)


def test_one_answer_is_in_work_and_the_newest_observation_is_next(bench):
    one = bench(execute_steps=1)
    one.loop.activate()
    one.steered.gate.clear()
    one.observe(1000)
    one.until(lambda: one.steered.asked, "the first question")
    for at_ms in (1050, 1100, 1150):
        one.observe(at_ms)
    assert len(one.steered.asked) == 1
    one.steered.gate.set()
    one.answered(2)
    assert [stamp for stamp, _ in one.steered.asked] == [1000 * MS, 1150 * MS]


def test_the_record_tells_what_became_of_the_chunk(bench):
    one = bench()
    one.loop.activate()
    one.observe(1000)
    one.answered(1)
    record = DecisionRecord.decode(one.records[0].encode())
    path = one.paths[0][0]
    np.testing.assert_array_equal(record.tensors["path_positions"], path.positions)
    np.testing.assert_array_equal(record.tensors["path_velocities"], path.velocities)
    np.testing.assert_array_equal(record.tensors["robot_position"], START)
    assert record.tensors["points"].shape == (5, 7)
    assert record.meta["effective_ns"] == one.paths[0][1]
    assert record.meta["execute_steps"] == 5
    assert record.meta["chunk_index"] == 0
    assert record.meta["latency_ms"] == 0.0
    assert record.meta["joints"] == list(ROBOT.path_joints)
    assert record.meta["hashes"] == {"policy": "p", "robot": ROBOT.hash}
    assert set(record.meta["timings_ns"]) >= {"assemble", "total", "plan"}


def test_deactivation_decelerates_to_rest(bench):
    one = bench()
    one.loop.activate()
    one.observe(1000)
    one.answered(1)
    one.now_ns += 120 * MS
    one.loop.deactivate()
    hold, _ = one.paths[-1]
    assert len(one.paths) == 2
    assert np.abs(hold.velocities[0]).max() > 0.01
    assert np.all(hold.velocities[-1] == 0.0)
    one.observe(1400)
    one.loop.watch()
    assert len(one.paths) == 2


def test_deactivation_without_motion_sends_nothing(bench):
    one = bench()
    one.loop.activate()
    one.loop.deactivate()
    one.loop.deactivate()
    assert one.paths == []


def test_an_answer_that_comes_after_deactivation_is_dropped(bench):
    one = bench()
    one.loop.activate()
    one.steered.gate.clear()
    one.observe(1000)
    one.until(lambda: one.steered.asked, "the question")
    one.loop.deactivate()
    one.loop.activate()
    one.steered.gate.set()
    one.observe(1050)
    one.answered(1)
    assert [r.stamp_ns for r in one.records] == [1050 * MS]


def test_when_observations_stop_the_arm_is_held_once_and_goes_on_when_they_return(bench):
    one = bench(max_age_s=0.3)
    one.loop.activate()
    one.observe(1000)
    one.answered(1)
    one.now_ns += 301 * MS
    for _ in range(3):
        one.loop.watch()
    assert len(one.paths) == 2
    assert "camera frame must be at most 300 ms old: it is 301 ms" in one.warnings[-1]
    level, sentence, values = one.report.summary("active")
    assert level == STALE
    assert "300 ms" in sentence
    assert values["holds"] == 1
    one.observe(1310)
    one.answered(2)
    one.loop.watch()
    assert one.report.summary("active")[0] == OK
    one.now_ns += 301 * MS
    one.loop.watch()
    assert len(one.paths) == 4


def test_a_hold_beyond_the_limits_is_not_sent_and_told(bench, monkeypatch):
    one = bench()
    one.loop.activate()
    one.observe(1000)
    one.answered(1)
    one.now_ns += 120 * MS
    fast = JointPath(np.array([0.0, 0.1]), np.array([[0.0] * 6, [1.0] * 6]), np.zeros((2, 6)))
    monkeypatch.setattr("qsteer_ros.motion.controller.within", lambda path, limits: False)
    monkeypatch.setattr("qsteer_ros.motion.controller.brake", lambda *state: fast)
    one.loop.deactivate()
    assert "a path must keep the speed limit of" in one.warnings[-1]
    assert len(one.paths) == 1


def test_a_path_that_has_come_to_rest_is_not_commanded_again(bench):
    one = bench()
    one.loop.activate()
    one.observe(1000)
    one.answered(1)
    one.now_ns += 3_600_000 * MS
    one.loop.watch()
    assert one.report.summary("active")[2]["holds"] == 1
    one.loop.deactivate()
    assert len(one.paths) == 1


def test_an_arm_that_was_moved_is_commanded_again_only_after_another_activation(bench):
    one = bench()
    one.loop.activate()
    one.observe(1000)
    one.answered(1)
    moved = START + np.array([0.2, 0, 0, 0, 0, 0])
    one.observe(60_000, moved)
    one.until(lambda: one.warnings, "the refusal")
    level, sentence, values = one.report.summary("active")
    assert level == ERROR
    assert "Deactivate and activate" in sentence
    assert values["refused_NotFollowing"] == 1
    one.loop.deactivate()
    assert len(one.paths) == 1
    one.loop.activate()
    one.observe(60_050, moved)
    one.answered(2)
    np.testing.assert_allclose(one.paths[-1][0].positions[0, :6], moved)


def test_an_arm_that_still_moves_is_taken_over_when_it_rests(bench):
    one = bench()
    one.loop.activate()
    one.observe(1000)
    one.answered(1)
    one.now_ns += 120 * MS
    one.loop.deactivate()
    one.loop.activate()
    one.observe(1150, velocity=0.5)
    one.until(lambda: one.warnings, "the refusal")
    assert "must start at rest" in one.warnings[-1]
    one.observe(1400)
    one.answered(2)
    np.testing.assert_array_equal(one.paths[-1][0].velocities[0], np.zeros(7))


@pytest.mark.parametrize("by_ms", [-350, 350, 3_600_000])
def test_when_the_clock_is_set_the_arm_comes_to_rest_and_goes_on_from_there(bench, by_ms):
    one = bench(execute_steps=1)
    one.loop.activate()
    one.observe(1000)
    one.answered(1)
    path, start_ns = one.paths[0]
    one.now_ns = 1100 * MS
    one.set_clock(by_ms)
    one.loop.watch()
    assert "the clock must not be set" in one.warnings[0]
    one.observe(1150 + by_ms)  # at rest between two motions, as it may be by chance
    rest_ns = start_ns + round(path.times_s[-1] * 1e9) + by_ms * MS
    one.position, one.paths[:] = path.positions[-1, :6], []
    one.observe(rest_ns / MS + 1)
    one.answered(2)
    assert [stamp for stamp, _ in one.steered.asked] == [1000 * MS, rest_ns + MS]
    np.testing.assert_allclose(one.paths[-1][0].positions[0, :6], path.positions[-1, :6])


def test_a_clock_that_is_set_sends_nothing_that_was_in_work(bench):
    one = bench()
    one.loop.activate()
    one.observe(1000)
    one.answered(1)
    one.steered.gate.clear()
    one.observe(1250)
    one.until(lambda: len(one.steered.asked) == 2, "the second question")
    one.set_clock(-100)
    one.steered.gate.set()
    one.until(lambda: one.warnings, "the refusal")
    one.set_clock(-100)
    one.loop.deactivate()
    assert len(one.paths) == 1


def test_a_hung_policy_does_not_delay_the_hold(bench):
    one = bench(max_age_s=0.1)
    one.loop.activate()
    one.observe(1000)
    one.answered(1)
    one.steered.gate.clear()
    one.observe(1250)
    one.until(lambda: len(one.steered.asked) == 2, "the second question")
    one.now_ns += 101 * MS
    one.loop.watch()
    assert len(one.paths) == 2
    one.steered.gate.set()
    one.until(lambda: one.warnings and "it took 101 ms" in one.warnings[-1], "the refusal")
    assert len(one.paths) == 2


def test_a_silent_camera_is_named_before_anything_moves(bench):
    one = bench()
    one.loop.activate()
    one.loop.watch()
    assert "none of ['front']" in one.warnings[-1]
    assert one.paths == []


def test_a_chunk_that_is_not_finite_is_refused_and_the_next_one_taken(bench):
    one = bench()
    one.loop.activate()
    good = one.steered.chunk
    one.steered.chunk = np.full_like(good, np.nan)
    one.observe(1000)
    one.until(lambda: one.warnings, "a warning")
    assert "chunk must be finite" in one.warnings[0]
    assert one.paths == []
    assert one.report.summary("active")[0] == WARN
    one.steered.chunk = good
    one.observe(1050)
    one.answered(1)
    assert one.report.summary("active")[2]["refused_DataError"] == 1


def test_a_refusal_of_the_policy_is_reported(bench):
    one = bench()
    one.loop.activate()
    one.steered.error = DataError("features must be finite.")
    one.observe(1000)
    one.until(lambda: "features must be finite." in one.warnings, "the warning")
    assert one.loop.failure is None


def test_an_unexpected_error_stops_the_arm_and_is_kept(bench):
    one = bench()
    one.loop.activate()
    one.observe(1000)
    one.answered(1)
    one.steered.error = ZeroDivisionError("a defect")
    one.observe(1250)
    one.until(lambda: one.loop.failure is not None, "the failure")
    one.until(lambda: len(one.paths) == 2, "the hold")
    assert not one.loop.active
    assert one.report.summary("inactive")[:2] == (ERROR, "ZeroDivisionError: a defect")


def test_a_clock_that_is_set_back_starts_anew(bench):
    one = bench()
    one.now_ns = 50_000 * MS
    one.loop.activate()
    one.observe(50_000)
    one.answered(1)
    one.now_ns = 100 * MS
    one.observe(100)
    one.answered(2)
    path, stamp_ns = one.paths[-1]
    assert stamp_ns == 110 * MS
    np.testing.assert_allclose(path.positions[0, :6], START)


def test_nothing_beyond_the_limits_is_sent(bench):
    one = bench(execute_steps=1)
    one.loop.activate()
    one.steered.chunk = np.tile(np.float32([1, 1, -1, 1, 1]), (5, 1))
    for k in range(10):
        one.observe(1000 + 50 * k)
        one.answered(k + 1)
        one.steered.chunk = -one.steered.chunk
    for path, _ in one.paths:
        found = peaks(path)
        assert np.all(found.velocity[:6] <= ROBOT.limits.velocity + 1e-9)
        assert np.all(found.acceleration[:6] <= ROBOT.limits.acceleration + 1e-6)


def test_steering_without_effect_is_a_warning(bench):
    one = bench()
    one.loop.activate()
    one.observe(1000)
    one.answered(1)
    assert one.report.summary("active")[0] == OK
    plan = one.loop._controller.report
    meta = {**one.records[0].meta, "critic_ratio": 1e-5}
    for _ in range(100):
        one.report.chunk(meta, plan)
    level, sentence, _ = one.report.summary("active")
    assert level == WARN
    assert "steering has no effect" in sentence
    for _ in range(100):
        one.report.chunk({**meta, "critic_ratio": 3.0}, plan)
    assert "steering replaces the policy" in one.report.summary("active")[1]
