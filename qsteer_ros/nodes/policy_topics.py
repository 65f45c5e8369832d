"""What a configured policy node says and hears: commands and records, cameras and joints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.duration import Duration
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, JointState
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import UInt8MultiArray
from trajectory_msgs.msg import JointTrajectory

from qsteer_ros.errors import DataError
from qsteer_ros.nodes import messages
from qsteer_ros.nodes.observations import ObservationAssembler
from qsteer_ros.nodes.policy_outlets import Outlets
from qsteer_ros.nodes.policy_parts import Parts

#: Half a second and more of joint states: none is missing at a frame when the machine is busy.
JOINTS_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
#: How long a command that was sent last is waited for.
ARRIVAL_TIMEOUT = Duration(seconds=1)
#: The newest command counts.
COMMAND_QOS = QoSProfile(depth=1)


class PolicyTopics:
    """Publishers that are silent unless the node is active, and subscriptions.

    Args:
        node: Whose they are.
        parts: Name the topics.
    """

    def __init__(self, node: LifecycleNode, parts: Parts) -> None:
        self._node = node
        self._parts = parts
        self._subscriptions: list[Any] = []
        create = node.create_lifecycle_publisher
        self._command = create(JointTrajectory, parts.robot.command_topic, COMMAND_QOS)
        self._decision = create(UInt8MultiArray, "~/decision", 10)

    def outlets(self, warn: Callable[[str], None]) -> Outlets:
        """Where the loop's results go."""
        joints = self._parts.robot.path_joints
        return Outlets(
            path=lambda path, stamp_ns: self._send(
                self._command, messages.to_trajectory(path, joints, stamp_ns)
            ),
            record=lambda record: self._send(self._decision, messages.to_bytes(record.encode())),
            warn=warn,
        )

    def listen(
        self,
        assembler: ObservationAssembler,
        notify: Callable[[], None],
        refuse: Callable[[DataError], None],
    ) -> None:
        """Subscribe to what the policy needs.

        Args:
            assembler: Gets what arrives.
            notify: Called after something has arrived.
            refuse: Called with the reason when joint states may not be used.
        """
        robot, group = self._parts.robot, MutuallyExclusiveCallbackGroup()

        def on_frame(camera: str, message: ImageMessage | CompressedImage) -> None:
            assembler.add_frame(camera, messages.from_stamp(message.header.stamp), message)
            notify()

        def on_joints(message: JointState) -> None:
            try:
                assembler.add_joints(messages.to_robot_state(message, robot))
            except DataError as error:
                refuse(error)
            else:
                notify()

        for name in self._parts.sizes:
            camera = robot.cameras[name]
            kind = CompressedImage if camera.transport == "compressed" else ImageMessage
            self._subscriptions.append(
                self._node.create_subscription(
                    kind,
                    camera.subscribed_topic,
                    partial(on_frame, name),
                    qos_profile_sensor_data,
                    callback_group=group,
                )
            )
        self._subscriptions.append(
            self._node.create_subscription(
                JointState, robot.joint_states_topic, on_joints, JOINTS_QOS, callback_group=group
            )
        )

    def close(self) -> None:
        """Leave every topic; a last command is given time to arrive."""
        if self._node.context.ok():
            self._command.wait_for_all_acked(ARRIVAL_TIMEOUT)
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []
        for publisher in (self._command, self._decision):
            self._node.destroy_lifecycle_publisher(publisher)

    def _send(self, publisher: LifecyclePublisher, message: Any) -> None:
        """Publish, unless the program is being shut down from outside."""
        try:
            publisher.publish(message)
        except rclpy_implementation.RCLError:
            if self._node.context.ok():
                raise
