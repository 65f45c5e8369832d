"""Notices that the machine's clock was set: a commanded path is timed by it."""

from __future__ import annotations

import time
from collections.abc import Callable

#: A clock is slewed by well below this between two looks, and set by more.
LEAST_STEP_NS = 20_000_000


class ClockSteps:
    """Compares a clock with the monotonic one, look by look. Not thread-safe.

    Args:
        now_ns: The clock.
        monotonic_ns: The one that nobody sets.
    """

    def __init__(
        self,
        now_ns: Callable[[], int],
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._now_ns = now_ns
        self._monotonic_ns = monotonic_ns
        self._least_ns, self._most_ns = self._offset_ns()

    def look(self) -> int:
        """How far the clock was set since the last look, ns; 0 when by less than a step.

        A delay between reading the two clocks is not taken for a step.
        """
        least_ns, most_ns = self._offset_ns()
        forward_ns, back_ns = least_ns - self._most_ns, self._least_ns - most_ns
        self._least_ns, self._most_ns = least_ns, most_ns
        if forward_ns > LEAST_STEP_NS:
            return forward_ns
        return -back_ns if back_ns > LEAST_STEP_NS else 0

    def _offset_ns(self) -> tuple[int, int]:
        """Bounds of the clock's lead over the monotonic one."""
        before_ns = self._monotonic_ns()
        now_ns = self._now_ns()
        return now_ns - self._monotonic_ns(), now_ns - before_ns
