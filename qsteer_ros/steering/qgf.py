"""Q-guided flow: add the critic's gradient at the clean prediction to the velocity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qsteer_ros.ensemble import Aggregate, QFunction, minimum
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import VelocityField
from qsteer_ros.steering.gradient import (
    NORMALISED,
    Bounds,
    check_weight,
    norm_per_sample,
    slope_at_clean,
)
from qsteer_ros.steering.trace import Trace


def qgf(
    field: VelocityField,
    q: QFunction,
    *,
    weight: float,
    aggregate: Aggregate = minimum,
    bounds: Bounds = NORMALISED,
    max_ratio: float = math.inf,
    trace: Trace | None = None,
) -> VelocityField:
    r"""Add the critic's gradient to a frozen velocity field.

    .. math:: v_w(x, \tau) = v(x, \tau) + w \, \nabla_{\hat a} \bar Q(\hat a), \qquad
              \hat a = \operatorname{clip}\big(x + (1 - \tau) \, v(x, \tau)\big)

    The gradient stops at :math:`\hat a`: the policy is not differentiated. It is not normalised,
    so that it is strong where the critic is steep.

    Args:
        field: Frozen field, flow time 0 = noise, (B, H, A), (B,) -> (B, H, A), normalised.
        q: Critic for the same observation, (B, H, A) -> (E, B); target networks.
        weight: w >= 0, in (normalised action)^2 per unit of return, so that w times the gradient
            is a velocity. 0 returns ``field`` itself and never asks the critic.
        aggregate: How members become one value.
        bounds: Of normalised actions; the prediction is clipped to them before it is judged.
        max_ratio: Largest norm of the guidance relative to the velocity, per sample and step;
            stronger guidance is shortened, its direction kept. Infinite: no limit.
        trace: Collects what happened; does not change a bit of the result.

    Returns:
        A field with the same signature. Rows of a batch do not influence each other.

    Raises:
        ConfigError: ``weight`` is negative or not finite, or ``max_ratio`` is not positive.

    Source:
        Q-Guided Flow, arXiv:2606.11087, and its code. Differs: the limit ``max_ratio``.
    """
    check_weight(weight)
    check_max_ratio(max_ratio)
    if weight == 0.0:
        return field

    def steered(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        velocity = field(noisy_chunk, flow_time)
        slope = slope_at_clean(
            q, noisy_chunk, flow_time, velocity, aggregate=aggregate, bounds=bounds
        )
        guidance = shorten(weight * slope.gradient, velocity, max_ratio=max_ratio)
        if trace is not None:
            trace.record(flow_time, velocity, guidance, slope)
        return velocity + guidance

    return steered


def shorten(guidance: Tensor, velocity: Tensor, *, max_ratio: float) -> Tensor:
    """Scale each sample's guidance down to at most ``max_ratio`` times its velocity's norm."""
    if math.isinf(max_ratio):
        return guidance
    norm = norm_per_sample(guidance)
    limit = max_ratio * norm_per_sample(velocity)
    return guidance * torch.where(norm > limit, limit / norm, torch.ones_like(norm))


def check_max_ratio(max_ratio: float) -> None:
    """Refuse a limit that would switch guidance off or mean nothing.

    Raises:
        ConfigError: ``max_ratio`` is not positive; infinity is allowed.
    """
    if not max_ratio > 0.0:
        raise ConfigError(
            f"'max_ratio' must be positive: got {max_ratio}. Largest guidance relative to the "
            "velocity; infinity sets no limit, weight 0 switches guidance off."
        )
