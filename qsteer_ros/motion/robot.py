"""The robot file: everything robot-specific, in one YAML file.

Nothing else in the package knows a joint name, a topic, a limit or a unit of a particular arm. All
lengths are metres, angles radians, times seconds. The gripper is 0 open, 1 closed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast

import numpy as np
import yaml

from qsteer_ros import resources
from qsteer_ros.errors import ConfigError
from qsteer_ros.motion.checked_yaml import CheckedYaml, UniqueKeys
from qsteer_ros.motion.servo import ServoModel
from qsteer_ros.types import Array

Transport = Literal["raw", "compressed"]
ActionMeaning = Literal["end_effector_delta", "joint_position"]

_KEYS = frozenset({
    "name", "joints", "urdf", "tool_frame", "gripper", "cameras", "joint_states_topic",
    "controller", "control_dt_s", "action", "workspace", "limits", "servo",
})  # fmt: skip


@dataclass(frozen=True)
class Camera:
    """One camera: where its frames come from and their size in pixels."""

    topic: str
    transport: Transport
    width: int
    height: int

    @property
    def subscribed_topic(self) -> str:
        """The topic that carries the frames in this transport (image_transport's naming)."""
        return self.topic if self.transport == "raw" else f"{self.topic}/compressed"


@dataclass(frozen=True, eq=False)
class JointLimits:
    """Limits of the arm's joints; the gripper's command has its own in :class:`RobotFile`.

    Attributes:
        lower: Smallest positions, (J,), rad.
        upper: Largest positions, (J,), rad.
        velocity: Largest speeds, (J,), rad/s.
        acceleration: Largest accelerations, (J,), rad/s^2.
        refuse_factor: A chunk that asks for more than this many times a joint's speed limit
            is refused; below it, the motion is limited.
        tracking_rad: Most that a joint may be away from where it is commanded, rad.
        rest_rad_per_s: A joint below this speed is at rest, rad/s.
    """

    lower: Array
    upper: Array
    velocity: Array
    acceleration: Array
    refuse_factor: float
    tracking_rad: float = 0.1
    rest_rad_per_s: float = 0.05


@dataclass(frozen=True, eq=False)
class RobotFile:
    """A robot, as its file describes it. Immutable; arrays are read-only.

    Attributes:
        name: Name of the robot, used in logs.
        joints: Arm joints in the order of every array in the package.
        gripper_joint: Joint that closes the gripper.
        gripper_closed_rad: Its position when closed; open is 0.
        gripper_tau_s: Time constant of the gripper's answer to a command.
        gripper_rate_rad_per_s: Largest rate of change of the gripper's command.
        effort_full_scale_n: Grip force that counts as 1.
        cameras: Camera name -> camera, in the file's order.
        joint_states_topic: Topic with positions, velocities and efforts by joint name.
        controller: Name of the joint trajectory controller.
        control_dt_s: Time between two actions of a chunk.
        control_dt_ns: The same as an integer, for everything that is compared with stamps.
        action_meaning: What an action is: ``end_effector_delta`` or ``joint_position``.
        action_names: Name of each action dimension.
        action_scale: Physical size of the normalised action 1, (A,): m, m, m, rad, closure.
        workspace_lower: Least x, y, z of commanded tool targets in the world, (3,), m.
        workspace_upper: Greatest x, y, z, (3,), m.
        limits: Limits of what is published.
        servo: Lag of the arm on which the policy's training data were recorded.
        urdf: File with the arm's kinematics.
        tool_frame: Link of the URDF that is the tool's point.
        hash: SHA-256 over the robot file and the URDF, hexadecimal.
    """

    name: str
    joints: tuple[str, ...]
    gripper_joint: str
    gripper_closed_rad: float
    gripper_tau_s: float
    gripper_rate_rad_per_s: float
    effort_full_scale_n: float
    cameras: Mapping[str, Camera]
    joint_states_topic: str
    controller: str
    control_dt_s: float
    action_meaning: ActionMeaning
    action_names: tuple[str, ...]
    action_scale: Array
    workspace_lower: Array
    workspace_upper: Array
    limits: JointLimits
    servo: ServoModel
    urdf: Path
    tool_frame: str
    hash: str

    @property
    def control_dt_ns(self) -> int:
        """Control period in integer nanoseconds."""
        return round(self.control_dt_s * 1e9)

    @property
    def command_topic(self) -> str:
        """Topic on which the controller takes trajectories."""
        return f"{self.controller}/joint_trajectory"

    @property
    def path_joints(self) -> tuple[str, ...]:
        """Joints of a published path: the arm's, then the gripper's."""
        return (*self.joints, self.gripper_joint)

    @classmethod
    def load(cls, path: str | Path) -> RobotFile:
        """Read and check a robot file.

        Args:
            path: The file, or its name under the package's ``config/``.

        Raises:
            ConfigError: The file is missing, is not YAML, or a key is missing, unknown or wrong.
        """
        file = resources.find(path)
        try:
            content = yaml.load(file.read_text(encoding="utf-8"), UniqueKeys)
            return _Reader(file).robot(content)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"robot file '{file}' must be YAML: {error}.") from error
        except OSError as error:
            raise ConfigError(
                f"robot file '{file}' and its URDF must be readable files: {error}. "
                "Check the name and its permissions."
            ) from error


class _Reader(CheckedYaml):
    """Turns parsed YAML into a RobotFile; every complaint names the file and the key."""

    def camera(self, name: str, content: object) -> Camera:
        key = f"cameras.{name}"
        c = self.section(content, key, frozenset({"topic", "transport", "width", "height"}))
        for side in ("width", "height"):
            if not isinstance(c[side], int) or isinstance(c[side], bool) or c[side] < 1:
                raise self.fail(f"{key}.{side}", "be a positive number of pixels", c[side])
        transport = self.choice(c["transport"], f"{key}.transport", ("raw", "compressed"))
        topic = self.topic(c["topic"], f"{key}.topic")
        return Camera(topic, cast(Transport, transport), c["width"], c["height"])

    def limits(self, content: object, joints: int) -> JointLimits:
        names = ("lower", "upper", "velocity", "acceleration")
        scalars = ("refuse_factor", "tracking_rad", "rest_rad_per_s")
        c = self.section(content, "limits", frozenset({*names, *scalars}))
        lower, upper, velocity, acceleration = (
            self.array(c[name], f"limits.{name}", joints) for name in names
        )
        if np.any(lower >= upper):
            raise self.fail("limits.lower", "be below limits.upper", c["lower"])
        for name, values in (("velocity", velocity), ("acceleration", acceleration)):
            if np.any(values <= 0.0):
                raise self.fail(f"limits.{name}", "be positive", c[name])
        factor = self.number(c["refuse_factor"], "limits.refuse_factor", least=1.0)
        tracking, rest = (self.number(c[name], f"limits.{name}") for name in scalars[1:])
        return JointLimits(lower, upper, velocity, acceleration, factor, tracking, rest)

    def servo(self, content: object, joints: int) -> ServoModel:
        c = self.section(content, "servo", frozenset({"tau_s", "bias_rad"}))
        tau = self.array(c["tau_s"], "servo.tau_s", joints)
        if np.any(tau < 0.0):
            raise self.fail("servo.tau_s", "not be negative", c["tau_s"])
        return ServoModel(tau, self.array(c["bias_rad"], "servo.bias_rad", joints))

    def robot(self, content: object) -> RobotFile:
        c = self.section(content, "", _KEYS)
        joints = self.texts(c["joints"], "joints")
        gripper = self.section(
            c["gripper"],
            "gripper",
            frozenset({"joint", "closed_rad", "tau_s", "rate_rad_per_s", "effort_full_scale_n"}),
        )
        action = self.section(c["action"], "action", frozenset({"meaning", "names", "scale"}))
        workspace = self.section(c["workspace"], "workspace", frozenset({"lower", "upper"}))
        names = self.texts(action["names"], "action.names")
        lower = self.array(workspace["lower"], "workspace.lower", 3)
        upper = self.array(workspace["upper"], "workspace.upper", 3)
        if np.any(lower >= upper):
            raise self.fail("workspace.lower", "be below workspace.upper", workspace["lower"])
        if not isinstance(c["cameras"], dict) or not c["cameras"]:
            raise self.fail("cameras", "name at least one camera", c["cameras"])
        gripper_joint = self.text(gripper["joint"], "gripper.joint")
        if gripper_joint in joints:
            raise self.fail("gripper.joint", "not be one of 'joints'", gripper_joint)
        urdf = self.urdf(self.text(c["urdf"], "urdf"))
        meaning = self.choice(
            action["meaning"], "action.meaning", ("end_effector_delta", "joint_position")
        )
        return RobotFile(
            name=self.text(c["name"], "name"),
            joints=joints,
            gripper_joint=gripper_joint,
            gripper_closed_rad=self.number(gripper["closed_rad"], "gripper.closed_rad"),
            gripper_tau_s=self.number(gripper["tau_s"], "gripper.tau_s"),
            gripper_rate_rad_per_s=self.number(
                gripper["rate_rad_per_s"], "gripper.rate_rad_per_s"
            ),
            effort_full_scale_n=self.number(
                gripper["effort_full_scale_n"], "gripper.effort_full_scale_n"
            ),
            cameras=MappingProxyType({str(n): self.camera(n, v) for n, v in c["cameras"].items()}),
            joint_states_topic=self.topic(c["joint_states_topic"], "joint_states_topic"),
            controller=self.topic(c["controller"], "controller"),
            control_dt_s=self.number(c["control_dt_s"], "control_dt_s", least=1e-3),
            action_meaning=cast(ActionMeaning, meaning),
            action_names=names,
            action_scale=self.array(action["scale"], "action.scale", len(names)),
            workspace_lower=lower,
            workspace_upper=upper,
            limits=self.limits(c["limits"], len(joints)),
            servo=self.servo(c["servo"], len(joints)),
            urdf=urdf,
            tool_frame=self.text(c["tool_frame"], "tool_frame"),
            hash=hashlib.sha256(self.file.read_bytes() + urdf.read_bytes()).hexdigest(),
        )

    def urdf(self, name: str) -> Path:
        beside = self.file.parent / name
        return beside.resolve() if beside.is_file() else resources.find(name)
