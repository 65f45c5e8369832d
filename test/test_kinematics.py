import dataclasses

import numpy as np
import pytest
from recorded_play import play

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.motion.kinematics import Kinematics, tool_down, yaw_of
from qsteer_ros.motion.robot import RobotFile

ROBOT = RobotFile.load("robot_ur5e_sim.yaml")
HOME = np.array([-np.pi / 2, -np.pi / 2, np.pi / 2, -np.pi / 2, -np.pi / 2, 0.0])


def test_the_tool_is_where_mujoco_has_the_pinch_point():
    mjcf = pytest.importorskip("ogbench.manipspace.envs.cube_env")
    import mujoco

    env = mjcf.CubeEnv(env_type="single", mode="data_collection")
    env.reset(seed=0)
    kinematics, rng = Kinematics(ROBOT), np.random.default_rng(0)
    model, data = env._model, env._data
    for _ in range(200):
        q = rng.uniform(ROBOT.limits.lower, ROBOT.limits.upper)
        data.qpos[env._arm_joint_ids] = q
        mujoco.mj_kinematics(model, data)
        xyz, rotation = kinematics.forward(q)
        np.testing.assert_allclose(xyz, data.site_xpos[env._pinch_site_id], atol=1e-9)
        expected = data.site_xmat[env._pinch_site_id].reshape(3, 3)
        np.testing.assert_allclose(rotation, expected, atol=1e-9)


def test_the_tool_is_where_the_recording_has_it():
    steps = play()
    kinematics = Kinematics(ROBOT)
    # The recorded points are one physics step of 2 ms old.
    for q, dq, pinch in zip(
        steps["q"][::50], steps["dq"][::50], steps["pinch"][::50], strict=True
    ):
        np.testing.assert_allclose(kinematics.forward(q - 0.002 * dq)[0], pinch, atol=2e-4)


def test_inverse_kinematics_return_to_the_joints_they_started_near():
    kinematics, rng = Kinematics(ROBOT), np.random.default_rng(1)
    for _ in range(100):
        q = HOME + rng.uniform(-0.4, 0.4, 6)
        found = kinematics.inverse(*kinematics.forward(q), q + rng.uniform(-0.05, 0.05, 6))
        np.testing.assert_allclose(found, q, atol=1e-5)


def test_inverse_kinematics_reach_any_pose_of_the_workspace_from_home():
    kinematics, rng = Kinematics(ROBOT), np.random.default_rng(2)
    for _ in range(50):
        xyz = rng.uniform(ROBOT.workspace_lower, ROBOT.workspace_upper)
        rotation = tool_down(rng.uniform(-np.pi, np.pi))
        reached, turned = kinematics.forward(kinematics.inverse(xyz, rotation, HOME))
        np.testing.assert_allclose(reached, xyz, atol=1e-5)
        np.testing.assert_allclose(turned, rotation, atol=1e-5)


def test_inverse_kinematics_do_not_change_their_start():
    kinematics, start = Kinematics(ROBOT), HOME.copy()
    kinematics.inverse(np.array([0.4, 0.0, 0.2]), tool_down(0.3), start)
    np.testing.assert_array_equal(start, HOME)


def test_a_pose_out_of_reach_is_refused_with_what_is_left():
    with pytest.raises(DataError, match=r"able to reach \[2.0, 0.0, 0.2\] m: .* mm .* are left"):
        Kinematics(ROBOT).inverse(np.array([2.0, 0.0, 0.2]), tool_down(0.0), HOME)


def test_a_pose_that_is_not_finite_is_refused():
    with pytest.raises(DataError, match="must be able to reach"):
        Kinematics(ROBOT).inverse(np.array([np.nan, 0.0, 0.2]), tool_down(0.0), HOME)


@pytest.mark.parametrize("yaw", [-3.0, -0.5, 0.0, 1.0, 3.1])
def test_a_tool_pointing_down_has_its_yaw(yaw):
    assert yaw_of(tool_down(yaw)) == pytest.approx(yaw)
    np.testing.assert_allclose(tool_down(yaw)[:, 2], [0.0, 0.0, -1.0], atol=1e-15)


def test_the_order_of_joints_is_that_of_the_robot_file():
    order = [3, 1, 5, 0, 2, 4]
    shuffled = dataclasses.replace(ROBOT, joints=tuple(ROBOT.joints[i] for i in order))
    kinematics, other = Kinematics(ROBOT), Kinematics(shuffled)
    q = HOME + 0.1
    np.testing.assert_allclose(other.forward(q[order])[0], kinematics.forward(q)[0], atol=1e-12)
    pose = kinematics.forward(q + 0.1)
    np.testing.assert_allclose(
        other.inverse(*pose, q[order]), kinematics.inverse(*pose, q)[order], atol=1e-6
    )


def test_a_joint_the_urdf_lacks_is_refused():
    robot = dataclasses.replace(ROBOT, joints=("knee_joint", *ROBOT.joints[1:]))
    with pytest.raises(ConfigError, match=r"has joints \['knee_joint'\], but"):
        Kinematics(robot)


def test_a_tool_frame_the_urdf_lacks_is_refused():
    robot = dataclasses.replace(ROBOT, tool_frame="hand")
    with pytest.raises(ConfigError, match=r"'tool_frame' must be a link .* got 'hand'.*'pinch'"):
        Kinematics(robot)


def test_a_urdf_that_is_none_is_refused(tmp_path):
    path = tmp_path / "arm.urdf"
    path.write_text("<sdf/>")
    with pytest.raises(ConfigError, match="must be a URDF"):
        Kinematics(dataclasses.replace(ROBOT, urdf=path))


def test_joints_beyond_the_arm_are_locked(tmp_path):
    finger = (
        '<joint name="finger" type="revolute"><parent link="pinch"/><child link="tip"/>'
        '<axis xyz="1 0 0"/><limit lower="0" upper="1" effort="1" velocity="1"/></joint>'
        '<link name="tip"/></robot>'
    )
    path = tmp_path / "arm.urdf"
    path.write_text(ROBOT.urdf.read_text().replace("</robot>", finger))
    kinematics = Kinematics(dataclasses.replace(ROBOT, urdf=path))
    np.testing.assert_allclose(kinematics.forward(HOME)[0], Kinematics(ROBOT).forward(HOME)[0])
