import shutil

import numpy as np
import pytest
import yaml

from qsteer_ros import resources
from qsteer_ros.errors import ConfigError
from qsteer_ros.motion.robot import RobotFile

SIM = "robot_ur5e_sim.yaml"


@pytest.fixture
def written(tmp_path):
    """Writes a changed copy of the simulator's robot file and returns its path."""
    content = yaml.safe_load(resources.find(SIM).read_text())
    shutil.copy(resources.find("ur5e.urdf"), tmp_path / "ur5e.urdf")

    def write(change):
        change(content)
        path = tmp_path / "robot.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.mark.parametrize("name", [SIM, "robot_ur5e_real.yaml"])
def test_shipped_robot_files_load(name):
    robot = RobotFile.load(name)
    assert len(robot.joints) == 6
    assert robot.path_joints[-1] == robot.gripper_joint
    assert robot.control_dt_ns == 50_000_000
    assert set(robot.cameras) == {"front", "wrist"}
    assert robot.command_topic.endswith("/joint_trajectory")


def test_compressed_cameras_are_read_from_the_compressed_topic():
    robot = RobotFile.load(SIM)
    assert robot.cameras["front"].subscribed_topic == "front/image_raw/compressed"


def test_a_raw_camera_is_read_from_its_topic(written):
    robot = RobotFile.load(written(lambda c: c["cameras"]["front"].update(transport="raw")))
    assert robot.cameras["front"].subscribed_topic == "front/image_raw"


def test_arrays_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        RobotFile.load(SIM).limits.velocity[0] = 9.0


def test_the_hash_follows_the_urdf(tmp_path, written):
    path = written(lambda c: None)
    before = RobotFile.load(path).hash
    urdf = tmp_path / "ur5e.urdf"
    urdf.write_text(urdf.read_text().replace("0.163", "0.164"))
    assert RobotFile.load(path).hash != before


REFUSALS = {
    "a misspelt key": (
        lambda c: c.update(workspce=c.pop("workspace")),
        "'workspce' is not a key of a robot file. Did you mean 'workspace'",
    ),
    "a missing key": (lambda c: c.pop("servo"), r"the robot file must have \['servo'\]"),
    "a joint twice": (
        lambda c: c["joints"].append("elbow_joint"),
        "'joints' must be a list of different names",
    ),
    "a short limit": (
        lambda c: c["limits"].update(velocity=[3.0]),
        "'limits.velocity' must be a list of 6 finite numbers",
    ),
    "crossed limits": (
        lambda c: c["limits"].update(lower=[9.0] * 6),
        "'limits.lower' must be below limits.upper",
    ),
    "a limit of zero": (
        lambda c: c["limits"].update(acceleration=[0.0] * 6),
        "'limits.acceleration' must be positive",
    ),
    "a limit that is not a number": (
        lambda c: c["limits"].update(velocity=[float("nan")] * 6),
        "'limits.velocity' must be a list of 6 finite numbers",
    ),
    "a negative lag": (
        lambda c: c["servo"].update(tau_s=[-0.1] * 6),
        "'servo.tau_s' must not be negative",
    ),
    "an unknown transport": (
        lambda c: c["cameras"]["front"].update(transport="zip"),
        "'cameras.front.transport' must be one of",
    ),
    "a camera without pixels": (
        lambda c: c["cameras"]["front"].update(width=0),
        "'cameras.front.width' must be a positive number of pixels",
    ),
    "no camera": (lambda c: c.update(cameras={}), "'cameras' must name at least one camera"),
    "no control period": (
        lambda c: c.update(control_dt_s=0),
        "'control_dt_s' must be a number above 0",
    ),
    "an unknown action meaning": (
        lambda c: c["action"].update(meaning="torque"),
        "'action.meaning' must be one of",
    ),
    "scales for other actions": (
        lambda c: c["action"].update(scale=[1.0]),
        "'action.scale' must be a list of 5 finite numbers",
    ),
    "a flat workspace": (
        lambda c: c["workspace"].update(lower=[0.6, 0.35, 0.35]),
        "'workspace.lower' must be below workspace.upper",
    ),
    "a missing URDF": (lambda c: c.update(urdf="none.urdf"), "'none.urdf' must exist"),
    "a camera topic that is no ROS name": (
        lambda c: c["cameras"]["front"].update(topic="front camera"),
        "'cameras.front.topic' must be a ROS name.*got 'front camera'",
    ),
    "a controller that is no ROS name": (
        lambda c: c.update(controller="my arm/joint"),
        "'controller' must be a ROS name",
    ),
    "joint states on no ROS name": (
        lambda c: c.update(joint_states_topic="joints//2"),
        "'joint_states_topic' must be a ROS name",
    ),
    "a gripper that is a joint of the arm": (
        lambda c: c["gripper"].update(joint="wrist_3_joint"),
        "'gripper.joint' must not be one of 'joints': got 'wrist_3_joint'",
    ),
    "a control period below a nanosecond": (
        lambda c: c.update(control_dt_s=1e-10),
        "'control_dt_s' must be a number above 0.001",
    ),
    "no bound of tracking": (
        lambda c: c["limits"].update(tracking_rad=0.0),
        "'limits.tracking_rad' must be a number above 0",
    ),
    "no bound of rest": (
        lambda c: c["limits"].update(rest_rad_per_s=-1.0),
        "'limits.rest_rad_per_s' must be a number above 0",
    ),
    "a text for a number": (
        lambda c: c["gripper"].update(closed_rad="wide"),
        "'gripper.closed_rad' must be a number above 0",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_wrong_file_is_refused_with_the_key_and_the_file(case, written):
    change, sentence = REFUSALS[case]
    with pytest.raises(ConfigError, match=sentence):
        RobotFile.load(written(change))


def test_a_file_that_is_not_a_mapping_is_refused(tmp_path):
    path = tmp_path / "robot.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="'robot file' must be a mapping"):
        RobotFile.load(path)


def test_a_file_that_is_not_yaml_is_refused(tmp_path):
    path = tmp_path / "robot.yaml"
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="must be YAML"):
        RobotFile.load(path)


def test_a_key_that_is_given_twice_is_refused(written):
    path = written(lambda c: None)
    path.write_text(path.read_text() + "\ncontroller: other\n")
    with pytest.raises(ConfigError, match=r"(?s)YAML.*key 'controller' must be given once"):
        RobotFile.load(path)


def test_a_key_that_is_given_twice_in_a_section_is_refused(tmp_path):
    path = tmp_path / "robot.yaml"
    path.write_text("limits: {lower: [0], lower: [1]}\n")
    with pytest.raises(ConfigError, match="key 'lower' must be given once"):
        RobotFile.load(path)


@pytest.mark.parametrize("name", ["robot.yaml", "ur5e.urdf"])
def test_a_file_that_cannot_be_read_is_refused(name, written, tmp_path, monkeypatch):
    path = written(lambda c: None)
    read = type(path).read_bytes

    def denied(self):
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return read(self)

    monkeypatch.setattr(type(path), "read_bytes", denied)
    with pytest.raises(ConfigError, match=r"must be readable files: .*Permission denied"):
        RobotFile.load(path)


def test_a_folder_is_no_robot_file(tmp_path):
    with pytest.raises(ConfigError):
        RobotFile.load(tmp_path)


def test_the_refuse_factor_is_above_one(written):
    with pytest.raises(ConfigError, match=r"'limits.refuse_factor' must be a number above 1"):
        RobotFile.load(written(lambda c: c["limits"].update(refuse_factor=0.5)))


def test_limits_of_the_sim_file_lie_inside_those_of_its_urdf():
    import pinocchio as pin

    robot = RobotFile.load(SIM)
    model = pin.buildModelFromUrdf(str(robot.urdf))
    assert np.all(robot.limits.lower >= model.lowerPositionLimit)
    assert np.all(robot.limits.upper <= model.upperPositionLimit)
    assert np.all(robot.limits.velocity <= model.velocityLimit)
