import numpy as np
import pytest
from recorded_play import DT_S, play

from qsteer_ros.errors import DataError
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.motion.servo import ServoModel, covered, fit_servo, fit_servo_from_log

TAU = np.array([0.09, 0.05, 0.2])
BIAS = np.array([0.0, 2e-3, -1e-3])


def synthetic(samples=400, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    model = ServoModel(TAU, BIAS)
    position = np.zeros((samples + 1, 3))
    command = np.cumsum(rng.normal(0.0, 0.05, (samples, 3)), axis=0)
    for k in range(samples):
        position[k + 1] = model.predict(position[k], command[k], DT_S)
    measured = position + rng.normal(0.0, noise, position.shape)
    return measured[:-1], command, measured[1:]


def test_a_lag_of_tau_covers_63_percent_in_tau():
    assert float(covered(0.1, 0.1)) == pytest.approx(1.0 - np.exp(-1.0))


def test_no_lag_reaches_the_command_at_once():
    assert float(covered(0.0, 0.05)) == 1.0


def test_the_fit_recovers_the_model_exactly_without_noise():
    fitted = fit_servo(*synthetic(), DT_S)
    np.testing.assert_allclose(fitted.tau_s, TAU, rtol=1e-9)
    np.testing.assert_allclose(fitted.bias_rad, BIAS, atol=1e-12)


def test_the_fit_recovers_the_model_through_noise():
    fitted = fit_servo(*synthetic(samples=4000, noise=1e-3), DT_S)
    np.testing.assert_allclose(fitted.tau_s, TAU, rtol=0.03)
    np.testing.assert_allclose(fitted.bias_rad, BIAS, atol=2e-4)


def test_the_fit_of_recorded_steps_finds_the_actuators_lag():
    steps = play()
    log = {
        "qpos": steps["q"],
        "control": steps["ctrl"],
        "terminals": np.append(np.diff(steps["episode"]) != 0, True),
    }
    fitted = fit_servo_from_log(log, DT_S)
    # kv / kp of the actuators. Wrist 2 hardly moves in the recording.
    moving = [0, 1, 2, 3, 5]
    np.testing.assert_allclose(
        fitted.tau_s[moving], np.array([4 / 45, 4 / 45, 4 / 45, 0.05, 0.2]), rtol=0.06
    )
    np.testing.assert_allclose(fitted.bias_rad, [0, 1.9e-3, 1.7e-3, 0.8e-3, 0, 0], atol=3e-4)
    shipped = RobotFile.load("robot_ur5e_sim.yaml").servo
    np.testing.assert_allclose(fitted.tau_s[moving], shipped.tau_s[moving], rtol=0.06)


def test_blocked_joints_do_not_count():
    position, command, after = synthetic()
    after[50:90, 2] = position[50:90, 2]  # held fast while the command goes on
    np.testing.assert_allclose(fit_servo(position, command, after, DT_S).tau_s, TAU, rtol=1e-6)


def test_steps_across_episodes_are_left_out():
    position, command, after = synthetic()
    log = {
        "qpos": np.vstack([position, after[-1:], position]),
        "control": np.vstack([command, np.full((1, 3), 99.0), command]),
        "terminals": np.arange(801) % 401 == 400,
    }
    np.testing.assert_allclose(fit_servo_from_log(log, DT_S).tau_s, TAU, rtol=1e-6)


def test_a_joint_that_was_not_moved_cannot_be_fitted():
    position, command, after = synthetic()
    command[:, 1] = position[:, 1] = after[:, 1] = 0.3
    with pytest.raises(DataError, match="joint 1 must show a first-order lag"):
        fit_servo(position, command, after, DT_S)


def test_noise_alone_cannot_be_fitted():
    rng = np.random.default_rng(3)
    position, command, after = (rng.normal(0.0, 1e-3, (50, 2)) for _ in range(3))
    with pytest.raises(DataError, match="must show a first-order lag"):
        fit_servo(position, command, after, DT_S)


@pytest.mark.parametrize(("samples", "match"), [(5, "at least 10 samples"), (20, "of one shape")])
def test_data_of_the_wrong_shape_are_refused(samples, match):
    position = np.zeros((samples, 2))
    command = np.zeros((samples, 2)) if samples < 10 else np.zeros((samples, 3))
    with pytest.raises(DataError, match=match):
        fit_servo(position, command, position, DT_S)


def test_data_that_are_not_finite_are_refused():
    position, command, after = synthetic()
    after[3, 1] = np.nan
    with pytest.raises(DataError, match="finite data"):
        fit_servo(position, command, after, DT_S)


def test_a_log_without_commands_is_refused():
    with pytest.raises(DataError, match=r"\['control', 'terminals'\] missing"):
        fit_servo_from_log({"qpos": np.zeros((20, 6))}, DT_S)


@pytest.mark.parametrize(
    ("tau", "bias", "match"),
    [
        (np.array([-0.1]), np.zeros(1), "must not be negative"),
        (np.array([np.nan]), np.zeros(1), "must be finite"),
        (np.zeros(2), np.zeros(1), "must both have shape"),
    ],
)
def test_an_impossible_model_is_refused(tau, bias, match):
    with pytest.raises(DataError, match=match):
        ServoModel(tau, bias)
