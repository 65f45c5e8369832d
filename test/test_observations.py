import numpy as np
import pytest

from qsteer_ros.errors import DataError, StaleObservation
from qsteer_ros.nodes.observations import FUTURE_NS, AgeLimits, ObservationAssembler
from qsteer_ros.types import RobotState

MS = 1_000_000
SIZES = {"front": (4, 6), "wrist": (4, 4)}
LIMITS = AgeLimits(age_ns=200 * MS, skew_ns=25 * MS)


def picture(camera, brightness=0):
    return np.full((*SIZES[camera], 3), brightness, dtype=np.uint8)


def joints(stamp_ms, value=0.0):
    return RobotState(round(stamp_ms * MS), np.full(6, value), np.full(6, -value), value / 10, 0.5)


def assembler(**frames):
    """With frames of each camera at the given ms, and joints every 10 ms from 0 to 300."""
    made = ObservationAssembler(SIZES, LIMITS, decode=lambda frame: frame)
    for camera, stamps in frames.items():
        for stamp_ms in stamps:
            made.add_frame(camera, round(stamp_ms * MS), picture(camera, int(stamp_ms) % 256))
    for stamp_ms in range(0, 301, 10):
        made.add_joints(joints(stamp_ms, stamp_ms / 100))
    return made


def test_the_newest_set_with_all_cameras_is_taken():
    observation = assembler(front=[50, 100, 150], wrist=[50, 100]).assemble(180 * MS)
    assert observation.stamp_ns == 100 * MS
    assert observation.image_stamps_ns == {"front": 100 * MS, "wrist": 100 * MS}
    assert observation.images["front"][0, 0, 0] == 100


def test_frames_within_the_skew_make_a_set_whose_stamp_is_the_newest():
    observation = assembler(front=[100], wrist=[124]).assemble(150 * MS)
    assert observation.stamp_ns == 124 * MS
    assert observation.image_stamps_ns == {"front": 100 * MS, "wrist": 124 * MS}


@pytest.mark.parametrize(("wrist_ms", "fits"), [(125, True), (125.000001, False)])
def test_the_skew_is_judged_to_the_nanosecond(wrist_ms, fits):
    made = assembler(front=[100], wrist=[wrist_ms])
    assert (made.newest_stamp_ns() is not None) is fits


def test_skewed_cameras_are_refused_with_their_distance():
    with pytest.raises(StaleObservation, match=r"within 25 ms of one another.* are 60 ms apart"):
        assembler(front=[100], wrist=[160]).assemble(170 * MS)


def test_a_missing_camera_is_refused_by_name():
    with pytest.raises(StaleObservation, match=r"every camera must have arrived: none of \['wri"):
        assembler(front=[100]).assemble(110 * MS)


def test_missing_joints_are_refused():
    made = ObservationAssembler(SIZES, LIMITS, decode=lambda frame: frame)
    for camera in SIZES:
        made.add_frame(camera, 100 * MS, picture(camera))
    assert made.newest_stamp_ns() is None
    with pytest.raises(StaleObservation, match="joint states must have arrived"):
        made.assemble(110 * MS)


@pytest.mark.parametrize(("now_ms", "stale"), [(300, False), (300.000001, True)])
def test_age_is_judged_to_the_nanosecond(now_ms, stale):
    made = assembler(front=[100], wrist=[100])
    assert (made.why_stale(round(now_ms * MS)) is not None) is stale


def test_old_frames_are_refused_with_their_age():
    made = assembler(front=[100], wrist=[100])
    with pytest.raises(
        StaleObservation, match=r"camera frame must be at most 200 ms old: it is 250 ms"
    ):
        made.assemble(350 * MS)


def test_old_joints_are_refused_although_frames_come():
    made = assembler(front=[310], wrist=[310])
    made.limits = AgeLimits(age_ns=5 * MS, skew_ns=25 * MS)
    assert "joint state must be at most 5 ms old: it is 12 ms" in made.why_stale(312 * MS)


def test_frames_from_the_future_are_refused():
    made = assembler(front=[200], wrist=[200])
    assert made.why_stale(200 * MS - FUTURE_NS) is None
    assert "101 ms in the future" in made.why_stale(99 * MS)


def test_joints_at_the_very_stamp_are_taken_as_they_are():
    robot = assembler(front=[100], wrist=[100]).assemble(100 * MS).robot
    assert robot.stamp_ns == 100 * MS
    assert robot.position[0] == 1.0


def test_joints_between_two_measurements_are_interpolated():
    robot = assembler(front=[104], wrist=[104]).assemble(110 * MS).robot
    assert robot.stamp_ns == 104 * MS
    np.testing.assert_allclose(robot.position, 1.04)
    np.testing.assert_allclose(robot.velocity, -1.04)
    assert robot.gripper == pytest.approx(0.104)
    assert robot.gripper_effort == pytest.approx(0.5)


def test_the_last_joints_are_taken_when_the_next_have_not_come():
    robot = assembler(front=[320], wrist=[320]).assemble(330 * MS).robot
    assert robot.stamp_ns == 300 * MS


def test_the_first_joints_are_taken_when_none_came_before():
    made = ObservationAssembler(SIZES, LIMITS, decode=lambda frame: frame)
    for camera in SIZES:
        made.add_frame(camera, 100 * MS, picture(camera))
    made.add_joints(joints(110))
    assert made.assemble(120 * MS).robot.stamp_ns == 110 * MS


def test_frames_wait_for_the_joints():
    made = assembler(front=[250, 350], wrist=[250, 350])
    assert made.newest_stamp_ns() is None
    made.add_joints(joints(330))
    assert made.newest_stamp_ns() == 350 * MS


def test_a_gap_in_the_joints_at_the_frames_is_refused():
    made = ObservationAssembler(SIZES, LIMITS, decode=lambda frame: frame)
    for camera in SIZES:
        made.add_frame(camera, 100 * MS, picture(camera))
    made.add_joints(joints(60))
    made.add_joints(joints(140))
    with pytest.raises(StaleObservation, match=r"within 25 ms of the .* nearest is 40 ms away"):
        made.assemble(150 * MS)


def test_late_frames_out_of_order_are_dropped():
    made = assembler(front=[100], wrist=[100])
    made.add_frame("front", 90 * MS, picture("front", 9))
    assert made.assemble(110 * MS).images["front"][0, 0, 0] == 100


def test_a_clock_set_back_forgets_what_came_before():
    made = assembler(front=[5000], wrist=[5000])
    made.add_frame("front", 100 * MS, picture("front"))
    assert "none of ['wrist']" in made.why_stale(110 * MS)


def test_frames_of_another_size_are_refused():
    made = assembler(wrist=[100])
    made.add_frame("front", 100 * MS, np.zeros((8, 8, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="camera 'front' must be 6x4: got 8x8"):
        made.assemble(110 * MS)


def test_only_frames_that_are_used_are_decoded():
    decoded = []
    made = ObservationAssembler(SIZES, LIMITS, decode=lambda f: decoded.append(f[0]) or f[1])
    for stamp_ms in (100, 150, 200):
        for camera in SIZES:
            made.add_frame(camera, stamp_ms * MS, (stamp_ms, picture(camera)))
    made.add_joints(joints(200))
    made.assemble(210 * MS)
    assert decoded == [200, 200]


def test_clearing_forgets_everything():
    made = assembler(front=[100], wrist=[100])
    made.clear()
    assert made.newest_stamp_ns() is None
    assert made.last_joints() is None
