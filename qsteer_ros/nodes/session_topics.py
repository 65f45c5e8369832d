"""What a session hears and says: success, decisions, the logger's state, episode events."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool, String, UInt8MultiArray

from qsteer_ros.errors import DataError
from qsteer_ros.replay.decision import DecisionRecord

LATCHED = QoSProfile(
    depth=10,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


class SessionTopics:
    """Stores the newest of what a session waits for. Callbacks run in the spinning thread.

    Args:
        node: Node that owns the subscriptions.
        notify: Called after each change.
        policy: Name of the policy node.
        logger: Name of the logger node.

    Attributes:
        success: Newest message on ``success`` since :meth:`forget`, or None.
        success_ns: ROS time at which ``success`` first became true since then, or None.
        recording: Newest state of the logger, a JSON object; empty before the first.
        chunk_ms: From observation stamp to published chunk, one per decision since
            :meth:`forget`, ms.
    """

    def __init__(
        self, node: Node, notify: Callable[[], None], *, policy: str, logger: str
    ) -> None:
        self._node = node
        self._notify = notify
        self.success: bool | None = None
        self.success_ns: int | None = None
        self.recording: dict[str, Any] = {}
        self.chunk_ms: list[float] = []
        self._event = node.create_publisher(String, "episode/event", LATCHED)
        node.create_subscription(Bool, "success", self._on_success, 10)
        node.create_subscription(UInt8MultiArray, f"{policy}/decision", self._on_decision, 10)
        node.create_subscription(String, f"{logger}/recording", self._on_recording, LATCHED)

    @property
    def now_ns(self) -> int:
        """ROS time, 0 before the first ``/clock``."""
        now: int = self._node.get_clock().now().nanoseconds
        return now

    def forget(self) -> None:
        """Begin an episode: what was heard so far belongs to the one before."""
        self.success, self.success_ns, self.chunk_ms = None, None, []

    def publish_event(self, kind: str, **entries: Any) -> None:
        """Announce ``start``, ``end`` or ``stop`` of an episode."""
        self._event.publish(String(data=json.dumps({"event": kind, **entries})))

    def _on_success(self, message: Bool) -> None:
        self.success = message.data
        if message.data and self.success_ns is None:
            self.success_ns = self.now_ns
        self._notify()

    def _on_decision(self, message: UInt8MultiArray) -> None:
        try:
            latency_ms = DecisionRecord.decode(bytes(message.data)).meta.get("latency_ms")
        except DataError as error:
            self._node.get_logger().error(str(error), throttle_duration_sec=1.0)
            return
        if latency_ms is not None:
            self.chunk_ms.append(float(latency_ms))
        self._notify()

    def _on_recording(self, message: String) -> None:
        self.recording = json.loads(message.data)
        self._notify()
