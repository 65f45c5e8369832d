"""What a policy loop remembers of its chunks: their numbers, the running one, what they took."""

from __future__ import annotations

from collections.abc import Mapping

from qsteer_ros.deadline import Deadline
from qsteer_ros.nodes.policy_pace import Reserve
from qsteer_ros.nodes.policy_parameters import PolicyParameters
from qsteer_ros.nodes.policy_parts import Parts
from qsteer_ros.policies.recording import Decision
from qsteer_ros.policies.running import RunningChunk, RunningMemory

Number = tuple[int, int]
"""Of a chunk: how often the numbers began again before it, and its number since, from 0."""


class ChunkMemory:
    """Numbers of chunks, the chunk that runs, and the time that decisions take.

    The loop's lock guards everything but `deadline` and `saw`, which the inference thread alone
    asks.

    Args:
        control_dt_ns: Control period.

    Attributes:
        number: Of the next chunk.
    """

    def __init__(self, control_dt_ns: int) -> None:
        self.number: Number = (0, 0)
        self._running = RunningMemory(control_dt_ns)
        self._reserve = Reserve()

    def restart(self) -> None:
        """Begin the numbers again; nothing that was numbered before is continued."""
        self.number = (self.number[0] + 1, 0)
        self._running.forget()

    def forget_running(self) -> None:
        """Nothing known is running any more; what is expected of latencies stays."""
        self._running.forget()

    def clear_running(self) -> None:
        """Forget the latencies too."""
        self._running.clear()

    def continued(self, stamp_ns: int, parameters: PolicyParameters) -> RunningChunk | None:
        """The running chunk, where a decision on an observation of this stamp continues it."""
        return self._running.at(stamp_ns) if parameters.real_time_chunking else None

    def deadline(
        self, parts: Parts, parameters: PolicyParameters, began_ns: int
    ) -> Deadline | None:
        """When a chunk must be denoised; None where nobody has to know."""
        if parts.pace is None:
            return None
        return self._reserve.deadline(
            parts.pace, start_ns=began_ns, longest_s=parameters.deadline_s
        )

    def published(
        self, number: Number, decision: Decision, *, stamp_ns: int, effective_ns: int
    ) -> None:
        """Take in a chunk that was sent, unless the numbers began again while it was decided.

        Args:
            number: Under which it was decided.
            decision: With the chunk.
            stamp_ns: Of its observation.
            effective_ns: When its path takes effect.
        """
        if number[0] == self.number[0]:
            self.number = (number[0], number[1] + 1)
            self._running.published(decision.chunk, stamp_ns=stamp_ns, effective_ns=effective_ns)

    def saw(self, timings_ns: Mapping[str, int]) -> None:
        """Take in the stages of a chunk that was published."""
        self._reserve.saw(timings_ns)
