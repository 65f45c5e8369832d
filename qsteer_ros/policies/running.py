"""The chunk that is being executed while the next one is decided."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qsteer_ros.errors import ConfigError
from qsteer_ros.steering.guide import Rule
from qsteer_ros.steering.rtc import rtc, shifted


@dataclass(frozen=True, eq=False)
class RunningChunk:
    """What real-time chunking continues.

    Attributes:
        chunk: The running chunk, normalised, (H, A) float32. Its actions must mean the same as
            those of the next one (not relative to another observation).
        elapsed: Control steps from its first action to the first action of the next chunk,
            1 to H.
        committed: Actions of the next chunk that will have been executed before it can take
            effect: the expected latency in control steps, rounded up; 0 to H - elapsed.

    Raises:
        ConfigError: A number is out of range.
    """

    chunk: NDArray[np.float32]
    elapsed: int
    committed: int

    def __post_init__(self) -> None:
        """Refuse a promise that the running chunk cannot keep."""
        horizon = len(self.chunk)
        if not 1 <= self.elapsed <= horizon:
            raise ConfigError(
                f"'elapsed' must be between 1 and the running chunk's {horizon} actions: got "
                f"{self.elapsed}."
            )
        if not 0 <= self.committed <= horizon - self.elapsed:
            raise ConfigError(
                f"'committed' must be between 0 and the {horizon - self.elapsed} actions that "
                f"the running chunk still has: got {self.committed}. Plan again sooner "
                "(execute_steps), or decide faster."
            )


def continuation(running: RunningChunk, *, like: Tensor) -> Rule:
    """Real-time chunking from the running chunk: a rule for `steering.guide.guide`.

    Args:
        running: What is being executed.
        like: Noise of the next chunk; gives device and type.
    """
    chunk = torch.from_numpy(np.ascontiguousarray(running.chunk)).to(like)
    return rtc(
        shifted(chunk, running.elapsed),
        committed=running.committed,
        overlap=len(running.chunk) - running.elapsed,
    )
