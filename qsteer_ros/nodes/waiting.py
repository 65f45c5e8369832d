"""A node in the background and a program in the foreground: every wait has a name and a limit.

The runners that drive other nodes (session, replay, autostart) read top to bottom. Their node is
spun by one thread; callbacks store what came and call :meth:`Foreground.notify`.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from rclpy.client import Client
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from qsteer_ros.errors import QsteerError

T = TypeVar("T")
CHECK_S = 0.1
"""How often a wait looks whether the program was told to stop."""
REPEAT_S = 5.0
"""After this long without an answer a request that may be repeated is sent again."""


class NoAnswer(QsteerError):
    """Another node did not do its part in time."""


class Stopped(Exception):
    """The program was told to stop while it waited."""


class Foreground:
    """Spins a node in a thread of its own while the caller waits for conditions.

    Args:
        node: The node. Its callbacks run in the spinning thread.

    Attributes:
        stopped: Set to end the wait in progress and every later one; cleared to tidy up.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.stopped = False
        self._changed = threading.Condition()
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)
        self._thread = threading.Thread(target=self._spin, name="spin", daemon=True)

    def __enter__(self) -> Foreground:
        """Start spinning."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop spinning; the node is left for its owner to destroy."""
        self._executor.shutdown()
        self._thread.join()

    def stop_on_signals(self) -> None:
        """Make Ctrl-C and SIGTERM end the waits; call from the main thread.

        Needs ``rclpy.init(signal_handler_options=SignalHandlerOptions.NO)``: the context then
        lives on and the program can bring the arm to rest before it ends.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def notify(self) -> None:
        """Called by callbacks: something a condition may depend on has changed."""
        with self._changed:
            self._changed.notify_all()

    def until(
        self, condition: Callable[[], T | None], *, timeout_s: float, what: str, remedy: str = ""
    ) -> T:
        """Block until ``condition()`` is neither ``None`` nor ``False``, and return it.

        Args:
            condition: Reads what callbacks stored.
            timeout_s: Limit on the wait, seconds of the monotonic clock.
            what: What must happen, for the message.
            remedy: What the user can do when it does not.

        Raises:
            NoAnswer: ``timeout_s`` passed.
            Stopped: The program was told to stop.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                value = condition()
                if value is not None and value is not False:
                    return value
                if self.stopped or not self.node.context.ok():
                    raise Stopped
                left_s = deadline - time.monotonic()
                if left_s <= 0.0:
                    raise NoAnswer(f"{what} within {timeout_s:g} s: it did not. {remedy}".strip())
                self._changed.wait(min(left_s, CHECK_S))

    def call(
        self, client: Client, request: Any, *, timeout_s: float, repeat_s: float = math.inf
    ) -> Any:
        """Call a service and wait for its answer.

        Args:
            client: The service.
            request: What is asked.
            timeout_s: Limit on the wait for the service, and again on that for its answer.
            repeat_s: Ask again after this long without an answer; only where asking twice does
                no more than asking once. A server that has not discovered the client's end of the
                answers yet drops the first one.

        Raises:
            NoAnswer: The service is not there, or does not answer, within ``timeout_s``.
            Stopped: The program was told to stop.
        """
        name = client.srv_name
        remedy = "Check that its node runs and look at its log."
        self.until(
            client.service_is_ready,
            timeout_s=timeout_s,
            what=f"service {name} must be offered",
            remedy=remedy,
        )
        futures: list[Any] = []
        begun_s = time.monotonic()

        def answered() -> Any:
            if time.monotonic() - begun_s >= len(futures) * repeat_s or not futures:
                futures.append(client.call_async(request))
                futures[-1].add_done_callback(lambda _: self.notify())
            return next((future for future in futures if future.done()), None)

        try:
            done = self.until(
                answered, timeout_s=timeout_s, what=f"service {name} must answer", remedy=remedy
            )
        finally:
            for future in futures:
                if not future.done():
                    client.remove_pending_request(future)
        return done.result()

    def _on_signal(self, number: int, frame: object) -> None:
        self.stopped = True  # seen by the wait within CHECK_S; no lock may be taken here

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            self.notify()
