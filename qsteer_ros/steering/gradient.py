"""The critic's gradient at the clean prediction: the one derivative every steering rule shares."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from qsteer_ros.ensemble import Aggregate, QFunction
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import predict_clean

Bounds = tuple[float, float]
"""Lowest and highest value of a normalised action component."""

NORMALISED: Bounds = (-1.0, 1.0)


class Slope(NamedTuple):
    """What the critic says at the clean prediction.

    Attributes:
        gradient: Derivative of the aggregated value with respect to the clipped prediction,
            (B, H, A), return units per normalised action unit.
        values: Members' values there, (E, B).
        value: Aggregated value there, (B,).
        clipped: True where the prediction lay outside the bounds, (B, H, A).
    """

    gradient: Tensor
    values: Tensor
    value: Tensor
    clipped: Tensor


@contextmanager
def local_gradients() -> Iterator[None]:
    """Record gradients inside the block even when the caller runs without.

    Works under ``torch.no_grad`` and ``torch.inference_mode``. Tensors that were made under
    inference mode must be cloned inside the block before they are differentiated.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield


def leaf(tensor: Tensor) -> Tensor:
    """Copy that gradients are taken at: no history, no shared memory, not an inference tensor."""
    return tensor.detach().clone().requires_grad_(True)


def slope_at_clean(
    q: QFunction,
    noisy_chunk: Tensor,
    flow_time: Tensor,
    velocity: Tensor,
    *,
    aggregate: Aggregate,
    bounds: Bounds,
) -> Slope:
    r"""Ask the critic at the clipped clean prediction and take its gradient there.

    .. math:: \hat a = \operatorname{clip}(x + (1 - \tau) v), \qquad
              g = \nabla_{\hat a} \sum_b \bar Q(\hat a_b)

    The gradient is taken *at* the clipped point, with respect to that point: components that were
    clipped are still guided, and the policy is not differentiated. The sum over the batch keeps
    rows independent. No graph outlives the call.

    Args:
        q: Critic for one observation, (B, H, A) -> (E, B).
        noisy_chunk: x, (B, H, A).
        flow_time: tau, (B,).
        velocity: v, the frozen field's answer, (B, H, A).
        aggregate: (E, B) -> (B,).
        bounds: Of normalised actions.

    Returns:
        Gradient, values and the clip mask, all detached.
    """
    prediction = predict_clean(noisy_chunk, flow_time, velocity).detach()
    clipped = (prediction < bounds[0]) | (prediction > bounds[1])
    with local_gradients():
        clean = leaf(prediction.clamp(*bounds))
        values = q(clean)
        value = aggregate(values)
        (gradient,) = torch.autograd.grad(value.sum(), clean)
    return Slope(gradient, values.detach(), value.detach(), clipped)


def norm_per_sample(tensor: Tensor) -> Tensor:
    """Euclidean norm over the whole chunk, shaped to multiply it: (B, H, A) -> (B, 1, 1)."""
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=(1, 2), keepdim=True)
    return norm


def check_weight(weight: float) -> None:
    """Refuse a weight no rule can use.

    Raises:
        ConfigError: ``weight`` is negative or not finite.
    """
    if not (math.isfinite(weight) and weight >= 0.0):
        raise ConfigError(
            f"'weight' must be finite and at least 0: got {weight}. "
            "Weight of the critic's gradient."
        )
