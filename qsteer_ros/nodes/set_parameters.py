"""Sets parameters of running nodes where there is no ``ros2 param``: what ``qsteer set`` runs.

All assignments to one node take effect together or not at all; the node's reason for refusing is
printed, and its state is unchanged then.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import rclpy
from rclpy.node import Node

from qsteer_ros.errors import QsteerError
from qsteer_ros.graph.systems import parse_settings
from qsteer_ros.nodes.lifecycle import RemoteNode
from qsteer_ros.nodes.waiting import Foreground, Stopped

ANSWER_TIMEOUT_S = 30.0
"""For finding the node and for loading what a parameter names, such as a critic."""


def main(assignments: Sequence[str] | None = None) -> int:
    """Apply ``NODE.PARAMETER=VALUE`` assignments; exit status 1 when one is refused."""
    given = sys.argv[1:] if assignments is None else assignments
    rclpy.init(args=[])
    node = Node("set_parameters")
    try:
        with Foreground(node) as foreground:
            for name, values in parse_settings(given).items():
                RemoteNode(foreground, name).set_parameters(values, timeout_s=ANSWER_TIMEOUT_S)
                print(f"{name}: {values}")  # noqa: T201
        return 0
    except QsteerError as error:
        print(f"qsteer set: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except (Stopped, KeyboardInterrupt):
        return 130
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
