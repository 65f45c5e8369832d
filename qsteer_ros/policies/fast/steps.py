"""What happened at each step, as the kernels note it and as a trace keeps it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from qsteer_ros.ensemble import Aggregate
from qsteer_ros.policies.fast.packing import Array
from qsteer_ros.steering.gradient import Bounds, Slope
from qsteer_ros.steering.trace import Trace


class Steps(NamedTuple):
    """Notes of every step and row; empty arrays when nobody wants them.

    Attributes:
        velocities: The frozen field's, (T, B, H A).
        guidances: What is added, or would be, (T, B, H A).
        slopes: The critic's gradient at the clean prediction, (T, B, H A).
        cleans: The clean prediction, unclipped, (T, B, H A).
        values: Members' values there, (T, B, E).
    """

    velocities: Array
    guidances: Array
    slopes: Array
    cleans: Array
    values: Array

    @classmethod
    def make(cls, steps: int, shape: tuple[int, ...], members: int, *, keep: bool) -> Steps:
        """Arrays to note in, for a batch of chunks of ``shape`` (B, H A)."""
        if not keep:
            return _NOTHING
        velocities, guidances, slopes, cleans = np.empty((4, steps, *shape), np.float32)
        values = np.empty((steps, shape[0], members), np.float32)
        return cls(velocities, guidances, slopes, cleans, values)

    def record(
        self,
        trace: Trace,
        times: NDArray[np.float32],
        shape: tuple[int, int],
        *,
        first: int,
        aggregate: Aggregate,
        bounds: Bounds,
    ) -> None:
        """Hand the notes to a trace, as `steering.guide` would have.

        Args:
            trace: Gets one record per step.
            times: Flow time of each step, (T,).
            shape: (H, A).
            first: Step from which on the critic was asked.
            aggregate: How members become one value.
            bounds: To which the clean prediction was clipped.
        """
        with torch.inference_mode(False), torch.no_grad():
            rows = self.velocities.shape[1]
            velocities, guidances, slopes, cleans = (
                torch.from_numpy(notes).view(-1, rows, *shape) for notes in self[:4]
            )
            values = torch.from_numpy(self.values).transpose(1, 2)  # (T, E, B)
            value = aggregate(values.transpose(0, 1).flatten(1)).view(-1, rows)
            answers = (slopes, values, value, (cleans < bounds[0]) | (cleans > bounds[1]))
            asked = list(zip(*(answer.unbind() for answer in answers), strict=True))
            each = zip(velocities.unbind(), guidances.unbind(), strict=True)
            for step, (velocity, guidance) in enumerate(each):
                time = velocity.new_full((rows,), float(times[step]))
                if step < first:
                    trace.record(time, velocity, None, None)
                else:
                    trace.record(time, velocity, guidance, Slope(*asked[step]))


_EMPTY: Array = np.empty((0, 0, 0), np.float32)
_NOTHING = Steps(_EMPTY, _EMPTY, _EMPTY, _EMPTY, _EMPTY)
