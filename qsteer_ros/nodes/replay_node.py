"""Plays the commands of a logged episode into the simulator and says how far the arm diverges.

The simulator is reset to the episode's goal and seed; every logged trajectory is published again,
stamp and moment shifted by the same whole number of control periods. The joint states that follow
are compared with the logged ones at the same moments. Publishes the robot's trajectory topic,
subscribes to ``joint_states``, writes ``report`` if that is set; the episode is only read.

Exit status 1 when the episode cannot be played, the simulator does not answer, or the arm ends up
further than ``tolerance_rad`` from the log.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from qsteer_ros.errors import ConfigError, DataError, QsteerError
from qsteer_ros.nodes.lifecycle import RemoteNode
from qsteer_ros.nodes.messages import from_stamp, to_stamp
from qsteer_ros.nodes.parameters import declare, param
from qsteer_ros.nodes.waiting import REPEAT_S, Foreground, Stopped
from qsteer_ros.replay.divergence import Divergence, compare
from qsteer_ros.replay.durable import write_atomically
from qsteer_ros.replay.reader import EpisodeReader, JointTrack

CONTROL_DT_NS = 50_000_000
LEAD_NS = 500_000_000
"""From the reset to the first repeated command."""
SERVICE_TIMEOUT_S = 60.0
STALL_TIMEOUT_S = 20.0
"""Longest wait for the next command's moment beyond its simulated time."""


@dataclass(frozen=True)
class ReplayParameters:
    """Parameters of the replay node, read once."""

    episode: str = param("", "Folder of the logged episode.")
    report: str = param("", "JSON file for the result; empty: only the log line.")
    tolerance_rad: float = param(
        0.05, "Largest difference of a joint position that is accepted, rad.", bounds=(0.0, 7.0)
    )
    sim_node: str = param("sim_node", "Name of the simulator node.")


class ReplayRunner:
    """Plays one episode, in the calling thread.

    Args:
        foreground: Spins the replay's node.
        parameters: The node's parameters.

    Raises:
        ConfigError: No episode is named.
        DataError: The episode is damaged or has nothing to play.
    """

    def __init__(self, foreground: Foreground, parameters: ReplayParameters) -> None:
        if not parameters.episode:
            raise ConfigError("parameter 'episode' must name a logged episode: it is empty.")
        self._foreground = foreground
        self._reader = EpisodeReader(parameters.episode)
        self._joints = tuple(self._reader.info.robot.get("joints", ()))
        self._commands = self._reader.of_role("trajectory")
        if not self._commands or not self._joints:
            raise DataError(
                f"'{parameters.episode}' must hold trajectories and the robot's joint names: it "
                f"has {len(self._commands)} and {len(self._joints)}. Choose another episode."
            )
        self._states: dict[int, list[float]] = {}
        self._newest_ns: int | None = None
        node = foreground.node
        topic, states = self._topic("trajectory"), self._topic("joint_states")
        self._publisher = node.create_publisher(JointTrajectory, topic, QoSProfile(depth=1))
        node.create_subscription(JointState, states, self._on_state, qos_profile_sensor_data)
        self._sim = RemoteNode(foreground, parameters.sim_node)
        self._reset = node.create_client(Trigger, f"{parameters.sim_node}/reset")

    def run(self) -> Divergence:
        """Reset, play, compare.

        Raises:
            NoAnswer: The simulator does not answer or stands still.
            DataError: No state of the run belongs to one of the log.
        """
        info = self._reader.info
        self._sim.set_parameters(
            {"seed": info.seed, "goal": info.goal}, timeout_s=SERVICE_TIMEOUT_S
        )
        answer = self._foreground.call(
            self._reset, Trigger.Request(), timeout_s=SERVICE_TIMEOUT_S, repeat_s=REPEAT_S
        )
        if not answer.success:
            raise ConfigError(f"the simulator must reset: it refused. {answer.message}")
        self._foreground.until(
            lambda: self._publisher.get_subscription_count() > 0,
            timeout_s=SERVICE_TIMEOUT_S,
            what=f"the simulator must listen to {self._topic('trajectory')}",
        )
        self._newest_ns = None
        now_ns = self._wait_for_state(0)
        periods = (now_ns + LEAD_NS - self._commands[0].log_time_ns) // CONTROL_DT_NS + 1
        shift_ns = periods * CONTROL_DT_NS
        for command in self._commands:
            message = deserialize_message(command.data, JointTrajectory)
            message.header.stamp = to_stamp(from_stamp(message.header.stamp) + shift_ns)
            self._wait_for_state(command.log_time_ns + shift_ns)
            self._publisher.publish(message)
        logged = self._reader.joints(self._joints)
        self._wait_for_state(int(logged.stamp_ns[-1]) + shift_ns)
        began = logged.stamp_ns >= self._commands[0].log_time_ns
        logged = JointTrack(*(part[began] for part in vars(logged).values()))
        return compare(self._joints, logged, self._track(), shift_ns)

    def _topic(self, role: str) -> str:
        topic = self._reader.info.topic(role)
        if topic is None:
            raise DataError(f"the episode must hold a topic for '{role}': it has none.")
        return topic.name

    def _on_state(self, message: JointState) -> None:
        position = dict(zip(message.name, message.position, strict=True))
        if all(joint in position for joint in self._joints):
            self._newest_ns = from_stamp(message.header.stamp)
            self._states[self._newest_ns] = [position[joint] for joint in self._joints]
            self._foreground.notify()

    def _wait_for_state(self, stamp_ns: int) -> int:
        """Wait until a joint state of this or a later moment has come; its stamp."""
        left_s = max(0.0, (stamp_ns - (self._newest_ns or stamp_ns)) * 1e-9)

        def reached() -> int | None:
            newest_ns = self._newest_ns
            return newest_ns if newest_ns is not None and newest_ns >= stamp_ns else None

        return self._foreground.until(
            reached,
            timeout_s=STALL_TIMEOUT_S + 10.0 * left_s,
            what="the simulator must go on and publish joint_states",
            remedy="Look at the log of sim_node.",
        )

    def _track(self) -> JointTrack:
        stamps = sorted(self._states)
        position = np.array([self._states[stamp] for stamp in stamps])
        unknown = np.zeros_like(position)
        return JointTrack(np.array(stamps, dtype=np.int64), position, unknown, unknown)


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node = Node("replay_node")
    try:
        parameters = declare(node, ReplayParameters)
        with Foreground(node) as foreground:
            foreground.stop_on_signals()
            found = ReplayRunner(foreground, parameters).run()
        if parameters.report:
            write_atomically(
                Path(parameters.report),
                json.dumps({**asdict(found), "worst_rad": found.worst_rad}) + "\n",
            )
        node.get_logger().info(
            f"{found.compared} states: {found.worst_joint} differs most, by "
            f"{found.worst_rad:.4f} rad after {found.worst_at_s:.2f} s"
        )
        if found.worst_rad > parameters.tolerance_rad:
            raise DataError(
                f"joint positions must stay within {parameters.tolerance_rad} rad of the log: "
                f"{found.worst_joint} differs by {found.worst_rad:.4f} rad."
            )
        return 0
    except QsteerError as error:
        node.get_logger().fatal(str(error))
        return 1
    except Stopped:
        return 0
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
