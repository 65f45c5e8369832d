"""The cost control: ask the critic, take its gradient, add nothing."""

from __future__ import annotations

from torch import Tensor

from qsteer_ros.ensemble import Aggregate, QFunction, minimum
from qsteer_ros.flow import VelocityField
from qsteer_ros.steering.gradient import NORMALISED, Bounds, check_weight, slope_at_clean
from qsteer_ros.steering.trace import Trace


def zero(
    field: VelocityField,
    q: QFunction,
    *,
    weight: float = 1.0,
    aggregate: Aggregate = minimum,
    bounds: Bounds = NORMALISED,
    trace: Trace | None = None,
) -> VelocityField:
    """Compute what :func:`~qsteer_ros.steering.qgf.qgf` computes and return the frozen velocity.

    The chunk is the frozen policy's bit for bit; the latency is the steered policy's. With a trace
    this mode also tells what a weight would do before anything is steered.

    Args:
        field: Frozen field, (B, H, A), (B,) -> (B, H, A), normalised.
        q: Critic for the same observation, (B, H, A) -> (E, B).
        weight: Scales the guidance that the trace reports as withheld.
        aggregate: How members become one value.
        bounds: Of normalised actions.
        trace: Collects what was withheld.

    Raises:
        ConfigError: ``weight`` is negative or not finite.
    """
    check_weight(weight)

    def steered(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        velocity = field(noisy_chunk, flow_time)
        slope = slope_at_clean(
            q, noisy_chunk, flow_time, velocity, aggregate=aggregate, bounds=bounds
        )
        if trace is not None:
            trace.record(flow_time, velocity, weight * slope.gradient, slope)
        return velocity

    return steered
