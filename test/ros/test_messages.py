from array import array

import numpy as np
import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import CompressedImage, Image, JointState

from qsteer_ros.errors import DataError
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.nodes import messages
from qsteer_ros.replay.images import encode_jpeg
from qsteer_ros.types import JointPath

pytestmark = pytest.mark.ros
ROBOT = RobotFile.load("robot_ur5e_sim.yaml")


def joint_state(**changes):
    names = [*reversed(ROBOT.path_joints), "another_joint"]
    message = JointState(
        name=names,
        position=[0.4, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 9.0],
        velocity=[0.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 9.0],
        effort=[-25.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 9.0],
    )
    message.header.stamp = messages.to_stamp(1_234_567_890_123)
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize("stamp_ns", [0, 1, 999_999_999, 10**9, 1_759_000_000_123_456_789])
def test_stamps_survive_the_round_trip(stamp_ns):
    assert messages.from_stamp(messages.to_stamp(stamp_ns)) == stamp_ns


def test_joints_are_found_by_name_and_others_ignored():
    state = messages.to_robot_state(joint_state(), ROBOT)
    np.testing.assert_array_equal(state.position, [0, 1, 2, 3, 4, 5])
    np.testing.assert_allclose(state.velocity, [0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert state.gripper == pytest.approx(0.5)
    assert state.gripper_effort == pytest.approx(0.5)
    assert state.stamp_ns == 1_234_567_890_123


def test_closure_and_effort_stay_between_0_and_1():
    message = joint_state()
    message.position[0], message.effort[0] = -0.01, 99.0
    state = messages.to_robot_state(message, ROBOT)
    assert state.gripper == 0.0
    assert state.gripper_effort == 1.0


def nan_at(index):
    values = list(joint_state().position)
    values[index] = float("nan")
    return values


REFUSALS = {
    "a joint is missing": (
        {"name": ["x", *reversed(ROBOT.joints), "y"]},
        r"joint states must name \['robotiq_85_left_knuckle_joint'\]",
    ),
    "a joint comes twice": (
        {"name": [*reversed(ROBOT.path_joints), "elbow_joint"]},
        r"each joint once: \['elbow_joint'\] found more often",
    ),
    "velocities are missing": (
        {"velocity": []},
        "must carry a velocity for each of their 8 joints: got 0",
    ),
    "efforts are missing": ({"effort": []}, "must carry a effort for each"),
    "a position is not a number": ({"position": nan_at(2)}, "RobotState.position must be finite"),
    "the gripper is not a number": ({"position": nan_at(0)}, "RobotState.gripper must be finite"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_joint_states_are_refused_when(case):
    changes, sentence = REFUSALS[case]
    with pytest.raises(DataError, match=sentence):
        messages.to_robot_state(joint_state(**changes), ROBOT)


def test_a_joint_that_is_not_ours_may_be_anything():
    messages.to_robot_state(joint_state(position=nan_at(7)), ROBOT)


def raw(pixels, encoding, padding=0):
    height, width, channels = pixels.shape
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, padding)))
    return Image(
        height=height,
        width=width,
        encoding=encoding,
        step=width * channels + padding,
        data=array("B", rows.tobytes()),
    )


RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
ALPHA = np.full((4, 6, 1), 7, dtype=np.uint8)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("pixels", "encoding"),
    [
        (RGB, "rgb8"),
        (RGB[:, :, ::-1], "bgr8"),
        (np.concatenate([RGB, ALPHA], axis=2), "rgba8"),
        (np.concatenate([RGB[:, :, ::-1], ALPHA], axis=2), "bgra8"),
    ],
)
def test_raw_frames_become_rgb(pixels, encoding, padding):
    found = messages.to_image(raw(np.ascontiguousarray(pixels), encoding, padding))
    np.testing.assert_array_equal(found, RGB)
    assert found.flags.c_contiguous
    assert found.flags.writeable


def test_grey_frames_become_rgb():
    grey = RGB[:, :, :1]
    found = messages.to_image(raw(np.ascontiguousarray(grey), "mono8"))
    np.testing.assert_array_equal(found, np.repeat(grey, 3, axis=2))


def test_an_unknown_encoding_is_refused():
    message = raw(RGB, "yuv422")
    with pytest.raises(DataError, match=r"raw frames must be one of .* got 'yuv422'"):
        messages.to_image(message)


def test_a_frame_with_too_few_bytes_is_refused():
    message = raw(RGB, "rgb8")
    message.data = message.data[:-1]
    with pytest.raises(DataError, match="a 6x4 rgb8 frame with step 18 must have 72 bytes"):
        messages.to_image(message)


def test_compressed_frames_are_decoded():
    smooth = np.full((16, 16, 3), (200, 50, 20), dtype=np.uint8)
    message = CompressedImage(
        format="rgb8; jpeg compressed bgr8", data=array("B", encode_jpeg(smooth))
    )
    assert np.abs(messages.to_image(message).astype(int) - smooth).max() <= 3


def test_png_frames_are_refused():
    with pytest.raises(DataError, match="compressed frames must be JPEG: got format 'png'"):
        messages.to_image(CompressedImage(format="png"))


def test_a_torn_frame_is_refused():
    data = encode_jpeg(RGB)[:-9]
    with pytest.raises(DataError, match="complete JPEG"):
        messages.to_image(CompressedImage(format="jpeg", data=array("B", data)))


def a_path():
    rng = np.random.default_rng(1)
    velocities = rng.normal(size=(4, 7))
    velocities[-1] = 0.0
    return JointPath(np.array([0.0, 0.037, 0.087, 1.247]), rng.normal(size=(4, 7)), velocities)


def test_paths_survive_the_round_trip():
    path = a_path()
    message = messages.to_trajectory(path, ROBOT.path_joints, 987_654_321_012)
    found, joints, stamp_ns = messages.from_trajectory(message)
    np.testing.assert_allclose(found.times_s, path.times_s, atol=1e-9)
    np.testing.assert_array_equal(found.positions, path.positions)
    np.testing.assert_array_equal(found.velocities, path.velocities)
    assert joints == ROBOT.path_joints
    assert stamp_ns == 987_654_321_012


def test_times_of_points_are_exact_nanoseconds():
    points = messages.to_trajectory(a_path(), ROBOT.path_joints, 0).points
    assert [(p.time_from_start.sec, p.time_from_start.nanosec) for p in points] == [
        (0, 0),
        (0, 37_000_000),
        (0, 87_000_000),
        (1, 247_000_000),
    ]


def test_a_trajectory_that_ends_at_speed_is_refused():
    message = messages.to_trajectory(a_path(), ROBOT.path_joints, 0)
    message.points[-1].velocities[0] = 0.1
    with pytest.raises(DataError, match="end at rest"):
        messages.from_trajectory(message)


def test_a_ragged_trajectory_is_refused():
    message = messages.to_trajectory(a_path(), ROBOT.path_joints, 0)
    message.points[1].positions = [1.0]
    with pytest.raises(DataError, match="equally long"):
        messages.from_trajectory(message)


def test_bytes_survive_the_round_trip():
    data = bytes(range(256)) * 3
    assert messages.from_bytes(messages.to_bytes(data)) == data


def test_diagnostics_carry_level_sentence_and_values():
    message = messages.to_diagnostics(
        5, "policy_node: policy", messages.WARN, "slow", {"p50": 1.23456789, "n": 3}
    )
    status = message.status[0]
    assert status.level == DiagnosticStatus.WARN
    assert (status.name, status.message) == ("policy_node: policy", "slow")
    assert {v.key: v.value for v in status.values} == {"p50": "1.23457", "n": "3"}
    assert messages.from_stamp(message.header.stamp) == 5
