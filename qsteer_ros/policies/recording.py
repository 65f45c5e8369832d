"""From a chunk and what it was made of to a decision with its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qsteer_ros.policies.bookkeeping import Stopwatch, summary_of
from qsteer_ros.policies.making import Made, Question
from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.steering.trace import Trace


@dataclass(frozen=True)
class Decision:
    """One answer to one observation.

    Attributes:
        chunk: Normalised actions inside the bounds, (H, A) float32.
        record: Everything needed to reproduce and to judge it.
    """

    chunk: NDArray[np.float32]
    record: DecisionRecord


def described(question: Question, made: Made) -> dict[str, Tensor]:
    """What the record keeps of a chunk and how it came about, batch axis removed."""
    tensors = {
        "noise": question.noise[made.index],
        "chunk": made.chunk[0],
        "chunk_unclipped": made.unclipped[made.index],
    }
    if question.settings.mode == "best_of_n":
        candidates = made.unclipped.clamp(*question.bounds)
        tensors |= {"candidate_noise": question.noise, "candidate_chunks": candidates}
    if question.settings.needs_noise_policy:
        tensors["noise_alone"] = question.alone[0]
    if made.twin is not None:
        tensors["chunk_unguided"] = made.twin[0]
    return tensors


def decision(
    tensors: Mapping[str, Tensor], meta: Mapping[str, Any], trace: Trace, clock: Stopwatch
) -> Decision:
    """Move everything to numpy and close the clock."""
    arrays = {name: _numpy(tensor) for name, tensor in tensors.items()}
    steps = {name: rows[:, 0] for name, rows in trace.arrays().items()}
    arrays |= {f"step_{name}": values for name, values in steps.items()}
    complete = {**meta, **summary_of(steps), "timings_ns": clock.laps()}
    return Decision(arrays["chunk"], DecisionRecord(arrays, complete))


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy().copy()
