"""What denoising steps cost, so that a chunk can be planned against its deadline."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from qsteer_ros.errors import ConfigError

WINDOW = 16
"""Measurements of a step that are remembered."""

PATIENCE = 32
"""Chunks after which a step that seemed too expensive is tried again."""


class StepCosts:
    """What each step costs, estimated from what it cost lately.

    An estimate is the upper quartile of the last 16 measurements: a hiccup of the machine does not
    count, five slow chunks do. What is not measured any more *because* it seems too expensive is
    given its first value again after 32 chunks without it; if the next measurement is slow, that
    one is believed at once. One instance is kept for all chunks of a policy.

    Attributes:
        guided: Estimate for each guided step, ns, T numbers.
        frozen: The same for the steps of the frozen policy.
    """

    def __init__(self, guided_ns: Sequence[int], frozen_ns: Sequence[int]) -> None:
        """Start from measured costs; `deadline.measure_costs` makes them.

        Raises:
            ConfigError: The two differ in length, are empty, or a cost is negative.
        """
        if not len(guided_ns) == len(frozen_ns) > 0 or min(*guided_ns, *frozen_ns) < 0:
            raise ConfigError(
                "step costs must be as many guided as frozen ones, in ns, none negative: got "
                f"{list(guided_ns)} and {list(frozen_ns)}."
            )
        self.guided, self.frozen = list(guided_ns), list(frozen_ns)
        self._first = {"guided": tuple(guided_ns), "frozen": tuple(frozen_ns)}
        self._lately = {
            kind: [deque([cost] * WINDOW, WINDOW) for cost in costs]
            for kind, costs in self._first.items()
        }
        self._untried = {kind: [0] * len(costs) for kind, costs in self._first.items()}

    def saw(self, kind: str, step: int, spent_ns: int) -> None:
        """Take in a measurement of a ``guided`` or ``frozen`` step."""
        lately = self._lately[kind][step]
        lately.append(spent_ns)
        self._of(kind)[step] = upper_quartile(lately)
        self._untried[kind][step] = 0

    def missed(self, kind: str, steps: Iterable[int]) -> None:
        """Take in that these steps of a chunk were not tried, for what they seem to cost."""
        for step in steps:
            self._untried[kind][step] += 1
            first = self._first[kind][step]
            if self._untried[kind][step] >= PATIENCE and self._of(kind)[step] > first:
                self._lately[kind][step] = deque([first], WINDOW)
                self._of(kind)[step] = first

    def _of(self, kind: str) -> list[int]:
        return self.guided if kind == "guided" else self.frozen


def upper_quartile(measured: Iterable[int]) -> int:
    """The largest measurement when a quarter, rounded down, are left out as hiccups."""
    ranked = sorted(measured)
    return ranked[len(ranked) - 1 - len(ranked) // 4]
