"""Records everything of an episode: one rosbag2 folder per episode, with provenance.

Subscribes, without deserialising, to the robot file's camera topics and joint states, the
controller's trajectories, the policy's decisions, ``episode/event``, ``reward``, ``success``,
``task`` and ``/diagnostics``. Publishes ``~/recording`` (String, JSON, latched: ``episode_id``,
``state``, ``path``, ``reason``) and its own ``/diagnostics`` at 1 Hz.

An episode begins with a ``start`` event and is refused when that carries no provenance. It ends
with the ``end`` event of the same episode, after everything published before that event has
arrived, or as ``aborted`` when another one starts or this node is told to stop. States on
``~/recording``: ``recording``, then ``closed`` (its folder is complete on the disk), then ``idle``
with an empty id; ``refused`` instead of the first when it is not recorded.

Messages that cannot be written in time are counted, told on ``/diagnostics`` and kept in
``episode.json``. A publisher that offers less than a stream asks for (best effort, volatile) is
subscribed to as it offers. No torch, no numpy work in callbacks, no waiting for the disk.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from qsteer_ros.errors import QsteerError
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.nodes.logger_streams import LoggerStreams
from qsteer_ros.nodes.messages import ERROR, OK, WARN, to_diagnostics
from qsteer_ros.nodes.parameters import declare, param
from qsteer_ros.replay.intake import Announcement, Intake
from qsteer_ros.replay.recorder import Recorder
from qsteer_ros.replay.records import LoggedMessage
from qsteer_ros.replay.topic import Topic

TICK_S = 0.02
LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


@dataclass(frozen=True)
class LoggerParameters:
    """Parameters of the logger node, read once."""

    robot: str = param("robot_ur5e_sim.yaml", "Robot file: cameras, joints, controller.")
    directory: str = param("data/episodes", "Episode store; one folder per episode is made in it.")
    decision_topic: str = param("policy_node/decision", "Topic of the policy's decision records.")
    camera_rate_hz: float = param(
        20.0, "Nominal frame rate, for counting missing frames.", bounds=(0.1, 1000.0)
    )
    queue_mb: int = param(64, "Most data that may wait for the disk, MB.", bounds=(1, 8192))
    flush_interval_s: float = param(
        0.05, "Longest time before a message is handed to the system, s.", bounds=(0.001, 1.0)
    )
    fsync_interval_s: float = param(
        1.0, "Longest time before the disk has it, s.", bounds=(0.01, 60.0)
    )
    drain_timeout_s: float = param(
        1.0, "Longest wait for messages published before the end, s.", bounds=(0.1, 30.0)
    )


class LoggerNode(Node):  # type: ignore[misc]
    """See the module.

    Raises:
        ConfigError: A parameter is out of bounds, or the robot file is missing or wrong.
    """

    def __init__(self) -> None:
        super().__init__("logger_node")
        self._parameters = declare(self, LoggerParameters)
        robot = RobotFile.load(self._parameters.robot)
        self._streams = LoggerStreams(
            self,
            robot,
            decision_topic=self._parameters.decision_topic,
            camera_period_ns=round(1e9 / self._parameters.camera_rate_hz),
            on_message=self._on_message,
        )
        self._received: Counter[str] = Counter()
        self._told_dropped = 0
        self._recorder = Recorder(
            self._parameters.directory,
            queue_bytes=self._parameters.queue_mb * 1_000_000,
            flush_interval_s=self._parameters.flush_interval_s,
            fsync_interval_s=self._parameters.fsync_interval_s,
        )
        self._intake = Intake(
            self._recorder,
            self._streams.offered,
            robot_layout(robot),
            born_ns=time.time_ns(),
            drain_timeout_s=self._parameters.drain_timeout_s,
        )
        self._recording = self.create_publisher(String, "~/recording", LATCHED)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Steady time: episodes must end although simulated time may stand still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(TICK_S, self._on_tick, clock=steady)
        self.create_timer(1.0, self._on_report, clock=steady)
        self._tell(Announcement("", "idle"))
        self._streams.open()

    def finish(self) -> None:
        """Close a running episode as aborted and wait until the disk has it."""
        self._recorder.shutdown()
        self._on_tick()

    def _on_message(
        self, topic: Topic, data: bytes, published_ns: int | None, sequence: int | None
    ) -> None:
        clock = self.get_clock()
        now_ns = clock.now().nanoseconds
        self._received[topic.name] += 1
        sent_ns = time.time_ns() if published_ns is None else published_ns
        message = LoggedMessage(
            topic=topic.name,
            type=topic.type,
            log_time_ns=now_ns,
            publish_time_ns=now_ns if clock.ros_time_is_active else sent_ns,
            sequence=self._received[topic.name] if sequence is None else sequence,
            data=data,
        )
        self._intake.take(message, published_ns=sent_ns, elapsed_ns=time.monotonic_ns())

    def _on_tick(self) -> None:
        self._streams.adapt()
        told = self._intake.tick(
            now_ns=self.get_clock().now().nanoseconds, elapsed_ns=time.monotonic_ns()
        )
        for announcement in told:
            self._tell(announcement)
            if announcement.state == "closed" and self._intake.current is None:
                self._tell(Announcement("", "idle"))

    def _tell(self, announcement: Announcement) -> None:
        entries = {
            "episode_id": announcement.episode_id,
            "state": announcement.state,
            "path": announcement.path,
            "reason": announcement.reason,
        }
        if self.context.ok():
            self._recording.publish(String(data=json.dumps(entries)))
        if announcement.state == "refused":
            self.get_logger().error(announcement.reason)
        elif announcement.reason:
            self.get_logger().error(f"{announcement.episode_id}: {announcement.reason}")
        elif announcement.episode_id:
            self.get_logger().info(f"{announcement.state} {announcement.path}")

    def _on_report(self) -> None:
        dropped = dict(self._recorder.dropped)
        total = sum(dropped.values())
        fresh, self._told_dropped = total - self._told_dropped, total
        level, summary = OK, "idle"
        if self._intake.current is not None:
            summary = f"recording {self._intake.current}"
        if total:
            level, summary = WARN, f"{total} messages dropped since the start"
        if fresh:
            level, summary = ERROR, f"{fresh} messages dropped in the last second"
        if self._recorder.error:
            level, summary = ERROR, f"cannot write: {self._recorder.error}"
        if level == ERROR:
            self.get_logger().error(summary, throttle_duration_sec=1.0)
        messages, size = self._recorder.waiting
        values = {
            "episode_id": self._intake.current or "",
            "store": self._parameters.directory,
            "waiting_messages": messages,
            "waiting_bytes": size,
            "received": sum(self._received.values()),
            **{f"dropped {name}": count for name, count in sorted(dropped.items())},
        }
        name = f"{self.get_name()}: recording"
        now_ns = self.get_clock().now().nanoseconds
        self._diagnostics.publish(to_diagnostics(now_ns, name, level, summary, values))


def robot_layout(robot: RobotFile) -> dict[str, Any]:
    """What a reader of the log needs to know about the robot, as JSON."""
    return {
        "name": robot.name,
        "hash": robot.hash,
        "joints": list(robot.joints),
        "gripper_joint": robot.gripper_joint,
        "gripper_closed_rad": robot.gripper_closed_rad,
        "effort_full_scale_n": robot.effort_full_scale_n,
        "control_dt_s": robot.control_dt_s,
        "action_names": list(robot.action_names),
        "action_scale": [float(value) for value in robot.action_scale],
    }


def main(args: list[str] | None = None) -> int:
    """Entry point; exit status 1 when it cannot start."""
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: stopping.append(received))
    try:
        node = LoggerNode()
    except QsteerError as error:
        get_logger("logger_node").fatal(str(error))
        rclpy.try_shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not stopping and rclpy.ok():
            executor.spin_once(timeout_sec=0.1)
    except ExternalShutdownException:
        pass
    finally:
        node.finish()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
