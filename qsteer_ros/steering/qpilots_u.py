"""QPILOTS-U: the gradient through the clean prediction, as long as a fraction of the drift."""

from __future__ import annotations

import torch
from torch import Tensor

from qsteer_ros.ensemble import Aggregate, QFunction, pessimistic
from qsteer_ros.flow import VelocityField, predict_clean
from qsteer_ros.steering.gradient import (
    NORMALISED,
    Bounds,
    Slope,
    check_weight,
    leaf,
    local_gradients,
    norm_per_sample,
    slope_at_clean,
)
from qsteer_ros.steering.trace import Trace

NORM_FLOOR = 1e-8
"""Added to the gradient's norm. Source: Meta Flow Maps code; the paper's value is not known."""


def qpilots_u(
    field: VelocityField,
    q: QFunction,
    *,
    weight: float,
    aggregate: Aggregate | None = None,
    keep_jacobian: bool = True,
    bounds: Bounds = NORMALISED,
    trace: Trace | None = None,
) -> VelocityField:
    r"""Push the field by a fixed fraction of its own length along the critic's gradient.

    .. math:: v_\alpha = v + \alpha \, \frac{\lVert v \rVert}{\lVert g \rVert + 10^{-8}} \, g,
              \qquad g = \nabla_x \bar Q\big(\operatorname{clip}[x + (1 - \tau) v(x, \tau)]\big)

    Norms are per sample over the whole chunk. The clip is straight-through: it moves the point
    that is judged and lets the gradient pass. At flow time 0 nothing is added and the critic is
    not asked. The result does not depend on the scale of Q.

    Args:
        field: Frozen field, (B, H, A), (B,) -> (B, H, A), normalised; differentiable in its first
            argument if ``keep_jacobian``.
        q: Critic for the same observation, (B, H, A) -> (E, B); target networks.
        weight: alpha >= 0, the ratio of guidance to velocity. 0 returns ``field`` itself.
        aggregate: How members become one value; None is mean less half the spread.
        keep_jacobian: Whether g goes back through the velocity inside the prediction, as in the
            paper. False stops at the prediction, which leaves QGF's direction.
        bounds: Of normalised actions.
        trace: Collects what happened; does not change a bit of the result.

    Returns:
        A field with the same signature. Rows of a batch do not influence each other.

    Raises:
        ConfigError: ``weight`` is negative or not finite.

    Source:
        QPILOTS, arXiv:2606.14801, eqs. 12, 14, 15 and 17.
    """
    check_weight(weight)
    if weight == 0.0:
        return field
    reduce = pessimistic(0.5) if aggregate is None else aggregate

    def steered(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        begun = flow_time > 0.0  # (B,)
        if not bool(begun.any()):
            velocity = field(noisy_chunk, flow_time)
            if trace is not None:
                trace.record(flow_time, velocity, None, None)
            return velocity
        if keep_jacobian:
            velocity, slope, gradient = _through_the_field(
                field, q, noisy_chunk, flow_time, aggregate=reduce, bounds=bounds
            )
        else:
            velocity = field(noisy_chunk, flow_time)
            slope = slope_at_clean(
                q, noisy_chunk, flow_time, velocity, aggregate=reduce, bounds=bounds
            )
            gradient = slope.gradient
        scale = weight * norm_per_sample(velocity) / (norm_per_sample(gradient) + NORM_FLOOR)
        guidance = begun.view(-1, 1, 1) * scale * gradient
        if trace is not None:
            trace.record(flow_time, velocity, guidance, slope)
        return velocity + guidance

    return steered


def _through_the_field(
    field: VelocityField,
    q: QFunction,
    noisy_chunk: Tensor,
    flow_time: Tensor,
    *,
    aggregate: Aggregate,
    bounds: Bounds,
) -> tuple[Tensor, Slope, Tensor]:
    """Velocity, the critic's answer, and its gradient pulled back to the noisy chunk."""
    with local_gradients():
        start, time = leaf(noisy_chunk), flow_time.clone()
        velocity = field(start, time)
        prediction = predict_clean(start, time, velocity)
        slope = slope_at_clean(
            q, start, time, velocity.detach(), aggregate=aggregate, bounds=bounds
        )
        (gradient,) = torch.autograd.grad(prediction, start, grad_outputs=slope.gradient)
    return velocity.detach(), slope, gradient
