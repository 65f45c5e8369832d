"""What a decision notes beside its tensors: durations, stamps and means over the steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qsteer_ros.errors import DataError
from qsteer_ros.types import Observation


class Stopwatch:
    """Durations of consecutive stages, in integer nanoseconds of a monotonic clock."""

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._start = self._last = time.perf_counter_ns()
        self._laps: dict[str, int] = {}

    def lap(self, stage: str) -> None:
        """Close a stage; on a GPU, wait for its kernels first."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        now = time.perf_counter_ns()
        self._laps[stage] = now - self._last
        self._last = now

    def laps(self) -> dict[str, int]:
        """Stage -> duration, and ``total`` since the start."""
        return {**self._laps, "total": time.perf_counter_ns() - self._start}


def chunk_seed(seed: int, chunk: int) -> int:
    """Seed of one chunk of an episode: the same for every arm, so that noise is matched.

    Args:
        seed: Of the episode.
        chunk: Number of the chunk, from 0.
    """
    return int(np.random.SeedSequence((seed, chunk)).generate_state(1)[0])


def stamps_of(observation: Observation) -> dict[str, Any]:
    """The stamps a record must name, integer nanoseconds of ROS time."""
    return {
        "stamp_ns": observation.stamp_ns,
        "robot_stamp_ns": observation.robot.stamp_ns,
        "image_stamps_ns": dict(observation.image_stamps_ns),
    }


def summary_of(steps: Mapping[str, NDArray[np.float32]]) -> dict[str, float | None]:
    """Means over the denoising steps at which the critic was asked.

    Args:
        steps: Rows of one sample of `Trace.arrays`, name -> (T,); empty when nothing was traced.

    Returns:
        ``ratio`` and ``cosine`` of guidance and velocity, ``critic_ratio`` (the critic's share of
        the guidance alone), ``query_clipped_share``, and
        ``q_before``: the value of the first clean prediction the critic saw. None where it was
        never asked or the number is undefined.
    """
    asked = np.isfinite(steps["q"]) if steps else np.zeros(0, dtype=bool)
    summary: dict[str, float | None] = {
        "q_before": float(steps["q"][asked][0]) if asked.any() else None
    }
    for name, key in (
        ("ratio", "ratio"),
        ("cosine", "cosine"),
        ("critic_ratio", "critic_ratio"),
        ("query_clipped_share", "clipped_share"),
    ):
        values = steps[key][asked] if steps else np.zeros(0, dtype=np.float32)
        defined = values[np.isfinite(values)]
        summary[name] = float(defined.mean()) if defined.size else None
    return summary


def check_finite(tensor: Tensor, what: str, remedy: str) -> None:
    """Refuse numbers no action may follow from.

    Raises:
        DataError: An entry is infinite or not a number; the message names the first.
    """
    wrong = ~torch.isfinite(tensor)
    if bool(wrong.any()):
        place = tuple(int(i) for i in torch.nonzero(wrong)[0])
        raise DataError(
            f"{what} must be finite: entry {list(place)} is {float(tensor[place])}. {remedy}"
        )
