"""Where a policy loop's results go, whoever carries them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.types import JointPath


@dataclass(frozen=True)
class Outlets:
    """Where results go. All are called from the loop's threads.

    Attributes:
        path: A path and the ROS time of its time 0.
        record: The record of a published chunk.
        warn: A sentence for the log; it limits its own rate.
    """

    path: Callable[[JointPath, int], None]
    record: Callable[[DecisionRecord], None]
    warn: Callable[[str], None]
