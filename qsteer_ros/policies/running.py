"""The chunk that is being executed while the next one is decided."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qsteer_ros.errors import ConfigError
from qsteer_ros.steering.gradient import NORMALISED
from qsteer_ros.steering.guide import Rule
from qsteer_ros.steering.rtc import rtc, shifted

LATENCIES = 10
"""Chunks whose latencies are remembered: the largest of them is expected of the next one."""


@dataclass(frozen=True, eq=False)
class RunningChunk:
    """What real-time chunking continues.

    Attributes:
        chunk: The running chunk, normalised, (H, A) float32. Its actions must mean the same as
            those of the next one (not relative to another observation). What of it is still to
            come is finite and inside the action bounds, -1 to 1.
        elapsed: Control steps from its first action to the first action of the next chunk,
            1 to H.
        committed: Actions of the next chunk that will have been executed before it can take
            effect: the expected latency in control steps, rounded up; 0 to H - elapsed.

    Raises:
        ConfigError: A number is out of range, or the chunk cannot be executed.
    """

    chunk: NDArray[np.float32]
    elapsed: int
    committed: int

    def __post_init__(self) -> None:
        """Refuse a promise that the running chunk cannot keep."""
        if self.chunk.ndim != 2:
            raise ConfigError(
                "the running chunk must be (H, A), actions by their dimensions: got shape "
                f"{self.chunk.shape}."
            )
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
        low, high = NORMALISED
        coming = self.chunk[self.elapsed :]
        if not np.all((coming >= low) & (coming <= high)):  # NaN is neither
            odd = coming[~((coming >= low) & (coming <= high))][0]
            raise ConfigError(
                f"the running chunk must be finite and inside the action bounds, {low:g} to "
                f"{high:g}: it holds {odd:g}. Give the normalised chunk as it was decided, "
                "clipped."
            )


def continuation(running: RunningChunk, *, like: Tensor) -> Rule:
    """Real-time chunking from the running chunk: a rule for `steering.guide.guide`.

    Args:
        running: What is being executed.
        like: Noise of the next chunk; gives shape, device and type.

    Raises:
        ConfigError: The running chunk has another shape.
    """
    if running.chunk.shape != tuple(like.shape[1:]):
        raise ConfigError(
            f"the running chunk must have the shape of the policy's, {tuple(like.shape[1:])}: got "
            f"{running.chunk.shape}. Nothing was sampled."
        )
    chunk = torch.from_numpy(np.ascontiguousarray(running.chunk)).to(like)
    return rtc(
        shifted(chunk, running.elapsed),
        committed=running.committed,
        overlap=len(running.chunk) - running.elapsed,
    )


def check_overlap(*, execute_steps: int, horizon: int) -> None:
    """Refuse real-time chunking where no action of a chunk would be left to continue.

    Args:
        execute_steps: Actions of a chunk that are executed before the next observation.
        horizon: H, actions of a chunk.

    Raises:
        ConfigError: All of them are.
    """
    if execute_steps >= horizon:
        raise ConfigError(
            "real-time chunking needs chunks that overlap: 'execute_steps' must be below the "
            f"{horizon} actions in a chunk, got {execute_steps}. Lower it, or turn real-time "
            "chunking off."
        )


def running_chunk(
    chunk: NDArray[np.float32], *, age_ns: int, latency_ns: int, control_dt_ns: int
) -> RunningChunk | None:
    """What the next decision continues.

    Args:
        chunk: Published last, normalised, (H, A).
        age_ns: From the stamp of its observation to that of the next one.
        latency_ns: Expected from the next observation's stamp to the moment its path takes effect.
        control_dt_ns: Control period.

    Returns:
        The running chunk; ``elapsed`` is the age in control steps, rounded to the nearest,
        ``committed`` the latency in control steps, rounded up, but at most what the running chunk
        still has. None when nothing of it is left, or when the next observation is none.
    """
    elapsed = (2 * age_ns + control_dt_ns) // (2 * control_dt_ns)
    if not 1 <= elapsed < len(chunk):
        return None
    expected = -(-max(latency_ns, 0) // control_dt_ns)
    return RunningChunk(chunk, elapsed, min(expected, len(chunk) - elapsed))


def seam_jump(
    running: RunningChunk, chunk: NDArray[np.float32], *, latency_ns: int, control_dt_ns: int
) -> float | None:
    """How far a new chunk departs from the running one where it takes over.

    Args:
        running: The chunk that was being executed.
        chunk: The next one, normalised, (H, A).
        latency_ns: From the next one's observation to the moment its path takes effect.
        control_dt_ns: Control period.

    Returns:
        The largest difference between two actions that are due at the same time, normalised, over
        the actions that both chunks have and that the new one can still change, at least in part;
        None where there is none.
    """
    first, overlap = latency_ns // control_dt_ns, len(running.chunk) - running.elapsed
    if first >= overlap:
        return None
    old = running.chunk[running.elapsed + first :]
    return float(np.abs(chunk[first:overlap] - old).max())


class RunningMemory:
    """The chunk that was published last, and how long the last ones took to take effect.

    Args:
        control_dt_ns: Control period.
    """

    def __init__(self, control_dt_ns: int) -> None:
        self._control_dt_ns = control_dt_ns
        self._latencies_ns: deque[int] = deque(maxlen=LATENCIES)
        self._last: tuple[NDArray[np.float32], int] | None = None

    def published(self, chunk: NDArray[np.float32], *, stamp_ns: int, effective_ns: int) -> None:
        """Remember a chunk.

        Args:
            chunk: Normalised, (H, A).
            stamp_ns: Of its observation.
            effective_ns: When its path takes effect.
        """
        self._last = (chunk, stamp_ns)
        self._latencies_ns.append(effective_ns - stamp_ns)

    def forget(self) -> None:
        """Nothing known is running any more; what is expected of latencies stays."""
        self._last = None

    def clear(self) -> None:
        """Forget the latencies too."""
        self._last = None
        self._latencies_ns.clear()

    def at(self, stamp_ns: int) -> RunningChunk | None:
        """What a decision on an observation with this stamp continues; None: nothing."""
        if self._last is None:
            return None
        chunk, before_ns = self._last
        return running_chunk(
            chunk,
            age_ns=stamp_ns - before_ns,
            latency_ns=max(self._latencies_ns),
            control_dt_ns=self._control_dt_ns,
        )
