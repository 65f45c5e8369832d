"""What denoising steps cost, so that a chunk can be planned against its deadline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qsteer_ros.errors import ConfigError

EASING = 8
"""An estimate that was too high comes down by this part of the difference at a time."""


class StepCosts:
    """What each step costs, estimated on the safe side from what it cost lately.

    An estimate jumps to a measurement above it and comes down by an eighth of the difference to
    one below. What was not measured *because* it seemed too expensive comes down as slowly, but
    never below its first value, so that one hiccup does not end guidance for good. One instance is
    kept for all chunks of a policy.

    Attributes:
        guided: Estimate for each guided step, ns, T numbers.
        frozen: The same for the steps of the frozen policy.
    """

    def __init__(self, guided_ns: Sequence[int], frozen_ns: Sequence[int]) -> None:
        """Start from measured costs; `measure_costs` makes them.

        Raises:
            ConfigError: The two differ in length, are empty, or a cost is negative.
        """
        if not len(guided_ns) == len(frozen_ns) > 0 or min(*guided_ns, *frozen_ns) < 0:
            raise ConfigError(
                "step costs must be as many guided as frozen ones, in ns, none negative: got "
                f"{list(guided_ns)} and {list(frozen_ns)}."
            )
        self.guided, self.frozen = list(guided_ns), list(frozen_ns)
        self._calm = {"guided": tuple(guided_ns), "frozen": tuple(frozen_ns)}

    def saw(self, kind: str, step: int, spent_ns: int) -> None:
        """Take in a measurement of a ``guided`` or ``frozen`` step."""
        estimates = self._of(kind)
        estimates[step] = max(spent_ns, _eased(estimates[step], spent_ns))

    def relax(self, kind: str, steps: Iterable[int]) -> None:
        """Let the estimates of steps that were not tried come down."""
        estimates, calm = self._of(kind), self._calm[kind]
        for step in steps:
            estimates[step] = _eased(estimates[step], calm[step])

    def _of(self, kind: str) -> list[int]:
        return self.guided if kind == "guided" else self.frozen


def _eased(estimate: int, towards: int) -> int:
    """Down by a part of the difference, never up."""
    return estimate - max(0, -(-(estimate - towards) // EASING))
