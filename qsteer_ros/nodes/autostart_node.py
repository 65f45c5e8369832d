"""Configures the policy node, activates it if told to, and ends.

Standing in for a person's ``ros2 lifecycle set``: in simulation the arm may move at once, on a
real one ``activate`` is false and a person activates.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import rclpy
from rclpy.node import Node

from qsteer_ros.errors import QsteerError
from qsteer_ros.nodes.lifecycle import RemoteNode
from qsteer_ros.nodes.parameters import declare, param
from qsteer_ros.nodes.waiting import Foreground, Stopped


@dataclass(frozen=True)
class AutostartParameters:
    """Parameters of the node that starts the policy."""

    node: str = param("policy_node", "Name of the lifecycle node.")
    activate: bool = param(False, "Whether it shall be activated too.")
    timeout_s: float = param(120.0, "For loading and warming up, s.", bounds=(1.0, 3600.0))


def main(args: list[str] | None = None) -> int:
    """Entry point; exit status 1 when the policy node refuses or does not answer."""
    rclpy.init(args=args)
    node = Node("autostart_node")
    try:
        wanted = declare(node, AutostartParameters)
        with Foreground(node) as foreground:
            state = "active" if wanted.activate else "inactive"
            RemoteNode(foreground, wanted.node).drive_to(state, timeout_s=wanted.timeout_s)
        node.get_logger().info(f"{wanted.node} is {state}")
        return 0
    except QsteerError as error:
        node.get_logger().fatal(str(error))
        return 1
    except (Stopped, KeyboardInterrupt):
        return 0
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
