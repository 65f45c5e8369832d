from __future__ import annotations

import threading

import pytest

pytest.importorskip("rclpy")

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from std_srvs.srv import Trigger

from qsteer_ros.nodes.executors import ServiceThreadExecutor
from qsteer_ros.nodes.waiting import Foreground

pytestmark = pytest.mark.ros
WAIT_S = 10.0


class Busy(Node):
    """A timer, and a service that waits until it is let go or raises."""

    def __init__(self, context) -> None:
        super().__init__("busy", context=context, use_global_arguments=False)
        self.ticks = threading.Semaphore(0)
        self.entered, self.let_go = threading.Event(), threading.Event()
        self.error: Exception | None = None
        group = MutuallyExclusiveCallbackGroup()
        self.create_timer(0.01, self.ticks.release, callback_group=group)
        self.create_service(Trigger, "~/work", self._on_work)

    def _on_work(self, _, response):
        self.entered.set()
        assert self.let_go.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        response.success = True
        return response


@pytest.fixture
def busy(context):
    """The node, a call of its service, and the thread that spins it with what it raised."""
    node, caller = Busy(context), Node("caller", context=context, use_global_arguments=False)
    executor = ServiceThreadExecutor(context=context)
    executor.add_node(node)
    raised: list[Exception] = []

    def spin() -> None:
        try:
            executor.spin()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=spin)
    thread.start()
    with Foreground(caller) as foreground:
        client = caller.create_client(Trigger, "busy/work")
        foreground.until(client.service_is_ready, timeout_s=WAIT_S, what="the service is offered")
        yield node, client.call_async(Trigger.Request()), foreground, thread, raised
        node.let_go.set()
        executor.shutdown()
        thread.join(WAIT_S)
    for other in (node, caller):
        other.destroy_node()


def test_timers_go_on_while_a_service_takes_its_time(busy):
    node, answer, foreground, _, _ = busy
    assert node.entered.wait(WAIT_S)
    while node.ticks.acquire(blocking=False):
        pass
    for _ in range(5):
        assert node.ticks.acquire(timeout=WAIT_S)
    assert not answer.done()
    node.let_go.set()
    foreground.until(answer.done, timeout_s=WAIT_S, what="the service answers")
    assert answer.result().success


def test_an_exception_in_a_service_ends_the_spin(busy):
    node, _, _, thread, raised = busy
    node.error = RuntimeError("a defect")
    node.let_go.set()
    thread.join(WAIT_S)
    assert [str(error) for error in raised] == ["a defect"]
