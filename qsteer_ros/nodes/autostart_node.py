"""Configures the policy node, activates it if told to, and ends.

Standing in for a person's ``ros2 lifecycle set``: in simulation the arm may move at once, on a
real one ``activate`` is false and a person activates.
"""

from __future__ import annotations

import sys

import rclpy
from rclpy.node import Node

from qsteer_ros.errors import QsteerError
from qsteer_ros.nodes.lifecycle import RemoteNode
from qsteer_ros.nodes.waiting import Foreground, Stopped


def main(args: list[str] | None = None) -> int:
    """Entry point; exit status 1 when the policy node refuses or does not answer.

    Parameters: ``node`` (name of the lifecycle node), ``activate``, ``timeout_s`` (for loading
    and warming up, seconds).
    """
    rclpy.init(args=args)
    node = Node("autostart_node")
    target = node.declare_parameter("node", "policy_node").value
    activate = node.declare_parameter("activate", False).value
    timeout_s = node.declare_parameter("timeout_s", 120.0).value
    try:
        with Foreground(node) as foreground:
            state = "active" if activate else "inactive"
            RemoteNode(foreground, target).drive_to(state, timeout_s=timeout_s)
        node.get_logger().info(f"{target} is {state}")
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
