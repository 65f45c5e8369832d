"""The logger's subscriptions: which topics, as what, and with which quality of service.

All are raw: messages stay serialised. They ask for reliable delivery and, where that matters, for
what was published before; a publisher that offers less is subscribed to as it offers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.event_handler import QoSRequestedIncompatibleQoSInfo, SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool, Float64, String, UInt8MultiArray
from trajectory_msgs.msg import JointTrajectory

from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.replay.topic import Qos, Topic

DEPTH = 200
#: Roles with one publisher, whose own count tells what was lost on the way; cameras besides.
COUNTED = ("joint_states", "decision", "reward", "success")

OnMessage = Callable[[Topic, bytes, int | None, int | None], None]


@dataclass(frozen=True)
class _Stream:
    """A topic to record and how to subscribe to it."""

    topic: Topic
    kind: type[Any]
    qos: QoSProfile


class LoggerStreams:
    """Subscribes to everything an episode holds.

    Args:
        node: Owner of the subscriptions.
        robot: Names the cameras, the joint states and the controller.
        decision_topic: Topic of the policy's decision records.
        camera_period_ns: Nominal time between two frames.
        on_message: Called with topic, serialised message, system time at which it was published
            and the publisher's count; None where the middleware does not tell, or where several
            publishers make the count useless.
    """

    def __init__(
        self,
        node: Node,
        robot: RobotFile,
        *,
        decision_topic: str,
        camera_period_ns: int,
        on_message: OnMessage,
    ) -> None:
        self._node = node
        self._on_message = on_message
        self._streams = _wanted(node, robot, decision_topic, camera_period_ns)
        self._subscriptions: dict[str, Subscription] = {}
        self._to_relax: dict[str, QoSPolicyKind] = {}
        self._publishers: dict[str, int] = {}

    def open(self) -> None:
        """Subscribe to all."""
        for name in self._streams:
            self._subscribe(name)

    def offered(self) -> list[Topic]:
        """The topics with the quality of service that their publishers offer now."""
        topics = []
        for name, stream in self._streams.items():
            publishers = self._node.get_publishers_info_by_topic(name)
            self._publishers[name] = len(publishers)
            profile = publishers[0].qos_profile if publishers else stream.qos
            topics.append(replace(stream.topic, qos=_qos(profile, stream.qos)))
        return topics

    def adapt(self) -> None:
        """Subscribe again where a publisher offers less than was asked for."""
        for name, policy in list(self._to_relax.items()):
            self._relax(name, policy)
        self._to_relax.clear()

    def _subscribe(self, name: str) -> None:
        stream = self._streams[name]
        counted = stream.topic.role in COUNTED or stream.topic.role.startswith("camera/")

        def on_message(data: bytes, information: Mapping[str, int | None]) -> None:
            sequence = information.get("publication_sequence_number")
            if not self._publishers.get(name):  # it may be heard before it is known
                self._publishers[name] = self._node.count_publishers(name)
            known = counted and self._publishers[name] == 1
            published_ns = information.get("source_timestamp") or None
            self._on_message(stream.topic, data, published_ns, sequence if known else None)

        def on_incompatible(information: QoSRequestedIncompatibleQoSInfo) -> None:
            self._to_relax[name] = information.last_policy_kind

        self._subscriptions[name] = self._node.create_subscription(
            stream.kind,
            name,
            on_message,
            stream.qos,
            raw=True,
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=on_incompatible),
        )

    def _relax(self, name: str, policy: QoSPolicyKind) -> None:
        stream = self._streams[name]
        reliability, durability = stream.qos.reliability, stream.qos.durability
        if policy == QoSPolicyKind.RELIABILITY:
            reliability = ReliabilityPolicy.BEST_EFFORT
        elif policy == QoSPolicyKind.DURABILITY:
            durability = DurabilityPolicy.VOLATILE
        else:
            return
        self._node.get_logger().info(
            f"{name}: its publisher offers less than asked for; {policy.name} is relaxed"
        )
        qos = QoSProfile(depth=stream.qos.depth, reliability=reliability, durability=durability)
        self._streams[name] = replace(stream, qos=qos)
        self._node.destroy_subscription(self._subscriptions.pop(name))
        self._subscribe(name)


def _wanted(
    node: Node, robot: RobotFile, decision_topic: str, camera_period_ns: int
) -> dict[str, _Stream]:
    """Resolved topic name -> stream."""
    plain = QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.RELIABLE)
    latched = QoSProfile(
        depth=10,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )
    wanted: list[tuple[str, str, type[Any], QoSProfile, int | None]] = [
        (
            f"camera/{name}",
            camera.subscribed_topic,
            CompressedImage if camera.transport == "compressed" else Image,
            plain,
            camera_period_ns,
        )
        for name, camera in robot.cameras.items()
    ]
    wanted += [
        ("joint_states", robot.joint_states_topic, JointState, plain, None),
        ("trajectory", robot.command_topic, JointTrajectory, plain, None),
        ("decision", decision_topic, UInt8MultiArray, plain, None),
        ("event", "episode/event", String, latched, None),
        ("reward", "reward", Float64, plain, None),
        ("success", "success", Bool, plain, None),
        ("task", "task", String, latched, None),
        ("diagnostics", "/diagnostics", DiagnosticArray, plain, None),
    ]
    streams = {}
    for role, name, kind, qos, period_ns in wanted:
        resolved = node.resolve_topic_name(name)
        package = kind.__module__.split(".", 1)[0]
        topic = Topic(resolved, f"{package}/msg/{kind.__name__}", role, period_ns=period_ns)
        streams[resolved] = _Stream(topic, kind, qos)
    return streams


def _qos(offered: QoSProfile, asked: QoSProfile) -> Qos:
    """The offered profile as the bag names it; publishers do not tell their depth."""
    best_effort = offered.reliability == ReliabilityPolicy.BEST_EFFORT
    latched = offered.durability == DurabilityPolicy.TRANSIENT_LOCAL
    return Qos(
        "best_effort" if best_effort else "reliable",
        "transient_local" if latched else "volatile",
        offered.depth or min(asked.depth, 10),
    )
