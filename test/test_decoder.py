import dataclasses

import numpy as np
import pytest
from recorded_play import chunk_starts, play

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.motion.decoder import EndEffectorDeltaDecoder, JointDecoder, make_decoder
from qsteer_ros.motion.kinematics import Kinematics, tool_down, yaw_of
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.motion.servo import ServoModel
from qsteer_ros.types import RobotState

ROBOT = RobotFile.load("robot_ur5e_sim.yaml")
KINEMATICS = Kinematics(ROBOT)
NO_LAG = ServoModel(np.zeros(6), np.zeros(6))
HOME = np.array([-np.pi / 2, -np.pi / 2, np.pi / 2, -np.pi / 2, -np.pi / 2, 0.0])


def state_at(xyz, yaw=0.0, gripper=0.0):
    q = KINEMATICS.inverse(np.array(xyz), tool_down(yaw), HOME)
    return RobotState(0, q, np.zeros(6), gripper)


def decoder(servo=None):
    return EndEffectorDeltaDecoder(ROBOT, KINEMATICS, servo or ROBOT.servo)


def chain_errors(servo):
    """Tool position error in mm and yaw error in rad after 5 recorded actions, per chunk."""
    steps, found = play(), []
    for i in chunk_starts(steps):
        state = RobotState(
            0, steps["q"][i], steps["dq"][i], float(np.clip(steps["closure"][i], 0, 1))
        )
        predicted = decoder(servo).decode(steps["action"][i : i + 5], state)[-1, :6]
        xyz, rotation = KINEMATICS.forward(predicted)
        true_xyz, true_rotation = KINEMATICS.forward(steps["q"][i + 5])
        turned = np.exp(1j * (yaw_of(rotation) - yaw_of(true_rotation)))
        found.append((1e3 * np.linalg.norm(xyz - true_xyz), abs(np.angle(turned))))
    return np.array(found)


def test_the_chain_predicts_where_the_recorded_arm_went():
    errors = chain_errors(ROBOT.servo)
    assert np.median(errors[:, 0]) < 2.0
    assert np.percentile(errors[:, 0], 95) < 4.0
    assert np.percentile(errors[:, 1], 95) < 0.005


def test_a_chain_without_the_lag_is_fifty_times_worse():
    assert np.median(chain_errors(NO_LAG)[:, 0]) > 50.0 * np.median(chain_errors(None)[:, 0])


def test_a_chain_without_the_gravity_term_is_several_times_worse():
    errors = chain_errors(ServoModel(ROBOT.servo.tau_s, np.zeros(6)))
    assert np.median(errors[:, 0]) > 3.0 * np.median(chain_errors(None)[:, 0])


def test_the_first_targets_are_those_the_simulator_computed():
    steps = play()
    for i in chunk_starts(steps, stride=31):
        # The simulator looks at a tool pose that is one physics step of 2 ms old.
        state = RobotState(0, steps["q"][i] - 0.002 * steps["dq"][i], steps["dq"][i], 0.0)
        targets = decoder().decode_with_targets(steps["action"][i : i + 5], state)[1]
        np.testing.assert_allclose(targets[0], steps["ctrl"][i, :6], atol=2e-3)


def test_without_lag_a_unit_action_moves_the_tool_by_its_scale():
    state = state_at([0.4, 0.0, 0.2], yaw=0.3)
    chunk = np.array([[1.0, -1.0, 0.5, 1.0, 0.0]])
    xyz, rotation = KINEMATICS.forward(decoder(NO_LAG).decode(chunk, state)[0, :6])
    np.testing.assert_allclose(xyz, [0.45, -0.05, 0.225], atol=1e-5)
    assert yaw_of(rotation) == pytest.approx(0.6, abs=1e-5)


def test_the_tool_keeps_pointing_down_and_a_tilt_is_put_right():
    state = state_at([0.4, 0.0, 0.2])
    tilted = dataclasses.replace(state, position=state.position + np.array([0, 0, 0, 0.1, 0, 0]))
    _, rotation = KINEMATICS.forward(decoder(NO_LAG).decode(np.zeros((1, 5)), tilted)[0, :6])
    np.testing.assert_allclose(rotation[:, 2], [0.0, 0.0, -1.0], atol=1e-5)


def test_targets_stay_in_the_workspace():
    state = state_at([0.27, 0.33, 0.03])
    chunk = np.tile([-1.0, 1.0, -1.0, 0.0, 0.0], (5, 1))
    for q in decoder(NO_LAG).decode(chunk, state)[:, :6]:
        np.testing.assert_allclose(KINEMATICS.forward(q)[0], [0.25, 0.35, 0.02], atol=1e-5)


def test_yaw_goes_on_through_half_a_turn():
    state = state_at([0.4, 0.0, 0.2], yaw=3.1)
    chunk = np.tile([0.0, 0.0, 0.0, 1.0, 0.0], (3, 1))
    positions = decoder(NO_LAG).decode(chunk, state)[:, :6]
    assert yaw_of(KINEMATICS.forward(positions[-1])[1]) == pytest.approx(
        3.1 + 0.9 - 2 * np.pi, abs=1e-4
    )
    assert np.abs(np.diff(positions, axis=0)).max() < 0.5  # no joint turned back


def test_the_gripper_column_is_predicted_closure_plus_delta_clipped():
    state = state_at([0.4, 0.0, 0.2], gripper=0.2)
    chunk = np.zeros((3, 5))
    chunk[:, 4] = [0.5, 0.5, 1.0]
    covered = 1.0 - np.exp(-ROBOT.control_dt_s / ROBOT.gripper_tau_s)
    second = 0.2 + covered * 0.5
    expected = np.array([0.7, second + 0.5, 1.0]) * ROBOT.gripper_closed_rad
    np.testing.assert_allclose(decoder().decode(chunk, state)[:, 6], expected, atol=1e-12)


def test_the_free_fingers_follow_the_lag_of_the_robot_file():
    steps = play()
    command, closure = steps["ctrl"][:-1, 6] / 255.0, steps["closure"]
    free = (closure[:-1] < 0.3) & (steps["episode"][1:] == steps["episode"][:-1])
    covered = 1.0 - np.exp(-ROBOT.control_dt_s / ROBOT.gripper_tau_s)
    predicted = closure[:-1] + covered * (command - closure[:-1])
    assert np.abs(predicted - closure[1:])[free].max() < 0.02


def test_actions_beyond_the_normalised_interval_are_clipped():
    state = state_at([0.4, 0.0, 0.2])
    np.testing.assert_array_equal(
        decoder().decode(np.full((2, 5), 7.0), state), decoder().decode(np.ones((2, 5)), state)
    )


def test_the_chunk_is_not_modified():
    chunk = np.full((2, 5), 7.0, dtype=np.float32)
    decoder().decode(chunk, state_at([0.4, 0.0, 0.2]))
    assert np.all(chunk == 7.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_chunk_that_is_not_finite_is_refused_by_name(bad):
    chunk = np.zeros((5, 5))
    chunk[2, 3] = bad
    with pytest.raises(DataError, match="chunk must be finite: action 2, 'dyaw' is"):
        decoder().decode(chunk, state_at([0.4, 0.0, 0.2]))


@pytest.mark.parametrize("shape", [(5,), (5, 6), (0, 5)])
def test_a_chunk_of_another_shape_is_refused(shape):
    with pytest.raises(DataError, match=r"chunk must have shape \(horizon, 5\)"):
        decoder().decode(np.zeros(shape), state_at([0.4, 0.0, 0.2]))


def joint_robot():
    names = (*ROBOT.joints, "gripper")
    return dataclasses.replace(
        ROBOT,
        action_meaning="joint_position",
        action_names=names,
        action_scale=np.array([np.pi] * 6 + [1.0]),
    )


def test_joint_actions_are_the_joints_themselves():
    robot = joint_robot()
    chunk = np.array([[0.1, -0.2, 0.3, 0.0, 0.0, 0.5, 0.25]])
    points = make_decoder(robot, KINEMATICS).decode(chunk, state_at([0.4, 0.0, 0.2]))
    np.testing.assert_allclose(points[0, :6], np.pi * chunk[0, :6])
    assert points[0, 6] == pytest.approx(0.25 * robot.gripper_closed_rad)


def test_the_robot_file_chooses_the_decoder():
    assert isinstance(make_decoder(ROBOT, KINEMATICS), EndEffectorDeltaDecoder)
    assert isinstance(make_decoder(joint_robot(), KINEMATICS), JointDecoder)


def test_a_decoder_refuses_a_robot_with_other_actions():
    with pytest.raises(ConfigError, match="EndEffectorDeltaDecoder needs"):
        EndEffectorDeltaDecoder(joint_robot(), KINEMATICS, ROBOT.servo)
    with pytest.raises(ConfigError, match="JointDecoder needs"):
        JointDecoder(ROBOT)
