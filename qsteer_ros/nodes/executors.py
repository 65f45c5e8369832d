"""An executor for a node whose sensors must not wait for its services.

rclpy's multi-threaded executor rebuilds its wait set several times per message: at 250 messages a
second it took 30 % of a core that the networks of the policy node need (47 % against 15 % for the
whole process), and decisions came late.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rclpy.context import Context
from rclpy.executors import (
    ConditionReachedException,
    ShutdownException,
    SingleThreadedExecutor,
    TimeoutException,
)
from rclpy.service import Service
from rclpy.task import Future


class ServiceThreadExecutor(SingleThreadedExecutor):  # type: ignore[misc]
    """Runs subscriptions and timers in the spinning thread, services in one thread of their own.

    A service that takes long, loading a critic for instance, delays other services and callbacks
    of its own callback group only. An exception in a callback ends the spin, as in rclpy's own.
    """

    def __init__(self, *, context: Context | None = None) -> None:
        super().__init__(context=context)
        self._services = ThreadPoolExecutor(1, thread_name_prefix="services")
        self._served: list[Future] = []

    def shutdown(self, timeout_sec: float | None = None) -> bool:
        """Take no more callbacks and let the service in work come to its end."""
        done = bool(super().shutdown(timeout_sec))
        self._services.shutdown(wait=True)
        return done

    def _spin_once_impl(
        self, timeout_sec: Any = None, wait_condition: Callable[[], bool] = lambda: False
    ) -> None:
        try:
            handler, entity, _ = self.wait_for_ready_callbacks(timeout_sec, None, wait_condition)
        except (ShutdownException, TimeoutException, ConditionReachedException):
            return
        if isinstance(entity, Service):
            self._services.submit(handler)
            self._served.append(handler)
        else:
            handler()
            handler.result()  # raises what the callback raised
        for served in [s for s in self._served if s.done()]:
            self._served.remove(served)
            served.result()
