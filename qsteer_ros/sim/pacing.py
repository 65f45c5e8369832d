"""Simulated time against the machine's clock."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Lateness that is made up for by hurrying; more than this and simulated time stays behind.
SLACK_NS = 10_000_000


class Pacer:
    """Keeps simulated time from running faster than ``factor`` times real time.

    When the machine cannot keep up, simulated time slows down instead of being chased: after a
    delay of more than 10 ms the schedule starts anew from now: a pause is never followed by a
    burst in which everybody else has less time to react.

    Args:
        factor: Simulated seconds per second, more than 0.
        clock: Monotonic time in ns.
        sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        factor: float,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._factor = factor
        self._anchor: tuple[int, int] | None = None

    @property
    def factor(self) -> float:
        """Simulated seconds per second that are aimed at."""
        return self._factor

    @factor.setter
    def factor(self, factor: float) -> None:
        if factor != self._factor:
            self._factor = factor
            self._anchor = None

    def wait(self, time_ns: int) -> None:
        """Return when simulated time may become ``time_ns``."""
        now_ns = self._clock()
        if self._anchor is None:
            self._anchor = (now_ns, time_ns)
            return
        wall_ns, simulated_ns = self._anchor
        due_ns = wall_ns + round((time_ns - simulated_ns) / self._factor)
        if now_ns > due_ns + SLACK_NS:
            self._anchor = (now_ns, time_ns)
        elif now_ns < due_ns:
            self._sleep((due_ns - now_ns) * 1e-9)
