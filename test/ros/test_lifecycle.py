from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("rclpy")

import rclpy
from fake_nodes import FakePolicy, Spinning
from rclpy.node import Node
from rclpy.task import Future

from qsteer_ros.errors import ConfigError
from qsteer_ros.graph.environment import free_domain
from qsteer_ros.nodes.lifecycle import RemoteNode
from qsteer_ros.nodes.waiting import Foreground, NoAnswer, Stopped

pytestmark = pytest.mark.ros
WAIT_S = 20.0


@pytest.fixture
def driver(context):
    """A policy node to drive, and its handle."""
    policy = FakePolicy(context)
    node = Node("driver", context=context, use_global_arguments=False)
    with Spinning(context, policy), Foreground(node) as foreground:
        yield policy, RemoteNode(foreground, "policy_node"), foreground
    node.destroy_node()


def steps(policy: FakePolicy) -> list[str]:
    return [entry.split()[0] for entry in policy.log]


def test_a_node_is_walked_through_its_lifecycle_in_both_directions(driver):
    policy, remote, _ = driver
    remote.drive_to("active", timeout_s=WAIT_S)
    assert steps(policy) == ["configure", "activate"]
    remote.drive_to("active", timeout_s=WAIT_S)
    assert steps(policy) == ["configure", "activate"]
    remote.drive_to("unconfigured", timeout_s=WAIT_S)
    assert steps(policy) == ["configure", "activate", "deactivate"]


def test_a_refused_transition_is_named(driver):
    policy, remote, _ = driver
    policy.fail_to_activate = True
    with pytest.raises(ConfigError, match=r"policy_node must activate: it failed\. Its log"):
        remote.drive_to("active", timeout_s=WAIT_S)


class LosesAnswers:
    """A service whose first answers are lost on the way."""

    srv_name = "lossy"

    def __init__(self, lost: int) -> None:
        self.asked: list[Future] = []
        self.forgotten: list[Future] = []
        self._lost = lost

    def service_is_ready(self) -> bool:
        return True

    def call_async(self, request: object) -> Future:
        self.asked.append(Future())
        if len(self.asked) > self._lost:
            self.asked[-1].set_result(f"answer {len(self.asked)}")
        return self.asked[-1]

    def remove_pending_request(self, future: Future) -> None:
        self.forgotten.append(future)


def test_a_request_that_may_be_repeated_is_sent_again_when_its_answer_is_lost(driver):
    _, _, foreground = driver
    client = LosesAnswers(lost=2)
    assert foreground.call(client, None, timeout_s=WAIT_S, repeat_s=0.05) == "answer 3"
    assert client.forgotten == client.asked[:2]


def test_any_other_request_is_sent_once(driver):
    _, _, foreground = driver
    client = LosesAnswers(lost=2)
    with pytest.raises(NoAnswer, match=r"lossy must answer within 0\.5 s"):
        foreground.call(client, None, timeout_s=0.5)
    assert client.forgotten == client.asked
    assert len(client.asked) == 1


def test_a_transition_whose_answer_is_lost_counts_by_the_state_it_led_to(driver, monkeypatch):
    policy, remote, foreground = driver
    call, lost = foreground.call, []

    def lossy(client, request, **limits):
        answer = call(client, request, **limits)
        if client.srv_name.endswith("change_state") and not lost:
            lost.append(answer)
            raise NoAnswer("lost")
        return answer

    monkeypatch.setattr(foreground, "call", lossy)
    remote.drive_to("active", timeout_s=WAIT_S)
    assert steps(policy) == ["configure", "activate"]
    assert lost


def test_parameters_are_set_all_or_none(driver):
    _, remote, _ = driver
    remote.set_parameters({"steering": "qgf", "seed": 4}, timeout_s=WAIT_S)
    with pytest.raises(ConfigError, match=r"policy_node refuses .* no such critic"):
        remote.set_parameters({"seed": 5, "critic": "bad"}, timeout_s=WAIT_S)
    found = remote.get_parameters(("steering", "seed"), timeout_s=WAIT_S)
    assert found == {"steering": "qgf", "seed": 4}


def test_a_node_that_is_not_there_is_named(driver):
    _, _, foreground = driver
    with pytest.raises(NoAnswer, match=r"other_node/get_state must be offered within 0\.2 s"):
        RemoteNode(foreground, "other_node").drive_to("active", timeout_s=0.2)


def test_a_wait_ends_when_the_program_is_told_to_stop(driver):
    _, _, foreground = driver
    foreground.stopped = True
    with pytest.raises(Stopped):
        foreground.until(lambda: None, timeout_s=WAIT_S, what="this must happen")


@pytest.mark.parametrize(("activate", "expected"), [("true", 3), ("false", 2)])
def test_autostart_activates_only_when_told(activate, expected):
    """In processes of their own, as `qsteer up` starts them; 2 is inactive, 3 is active."""
    domain = free_domain()
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
    command = [sys.executable, "-m", "qsteer_ros.nodes.autostart_node", "--ros-args"]
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    policy = FakePolicy(context)
    with Spinning(context, policy):
        done = subprocess.run(
            [*command, "-p", f"activate:={activate}"],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert policy._state_machine.current_state[0] == expected
    context.try_shutdown()
