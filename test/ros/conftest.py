"""ROS tests: skipped where rclpy is absent, each run in a domain of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from qsteer_ros.graph.environment import additions, free_domain

pytest.importorskip("rclpy")

os.environ.setdefault("ROS_DOMAIN_ID", str(free_domain()))
os.environ.update(additions(os.environ))
sys.path[:0] = [str(folder) for folder in Path(__file__).parents[:2]]


@pytest.fixture
def context():
    """A ROS context in a domain of its own: what another test leaves behind is not heard."""
    import rclpy

    context = rclpy.Context()
    rclpy.init(context=context, domain_id=free_domain())
    yield context
    context.try_shutdown()


@pytest.fixture
def bench():
    """Makes policy loops that end with the test."""
    from policy_bench import Bench, FakeSteered

    made = []

    def make(**parameters):
        made.append(Bench(**parameters))
        return made[-1]

    yield make
    for one in made:
        if isinstance(one.steered, FakeSteered):
            one.steered.gate.set()
        one.loop.stop()
