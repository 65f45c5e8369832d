"""The derivatives that steering rules share: of the critic, and of the clean prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from qsteer_ros.ensemble import Aggregate, QFunction, check_shape
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import VelocityField, predict_clean

Bounds = tuple[float, float]
"""Lowest and highest value of a normalised action component."""

NORMALISED: Bounds = (-1.0, 1.0)


class Slope(NamedTuple):
    """What the critic says at a chunk.

    Attributes:
        gradient: Derivative of the aggregated value with respect to the clipped chunk,
            (B, H, A), return units per normalised action unit.
        values: Members' values there, (E, B).
        value: Aggregated value there, (B,).
        clipped: True where the chunk lay outside the bounds, (B, H, A).
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


def slope_at(q: QFunction, clean: Tensor, *, aggregate: Aggregate, bounds: Bounds | None) -> Slope:
    r"""Ask the critic at a chunk and take its gradient there.

    .. math:: \hat a = \operatorname{clip}(a), \qquad g = \nabla_{\hat a} \sum_b \bar Q(\hat a_b)

    The gradient is taken *at* the clipped point, with respect to that point: components that were
    clipped are still guided. The sum over the batch keeps rows independent. No graph outlives the
    call.

    Args:
        q: Critic for one observation, (B, H, A) -> (E, B).
        clean: a, (B, H, A).
        aggregate: (E, B) -> (B,).
        bounds: Of normalised actions; None judges the chunk as it is.

    Returns:
        Gradient, values and the clip mask, all detached.

    Raises:
        ConfigError: The critic's answer has not the shape (E, B).
    """
    if bounds is None:
        clipped, point = torch.zeros_like(clean, dtype=torch.bool), clean
    else:
        clipped = (clean < bounds[0]) | (clean > bounds[1])
        point = clean.clamp(*bounds)
    with local_gradients():
        start = leaf(point)
        values = q(start)
        check_shape(values, len(start))
        value = aggregate(values)
        (gradient,) = torch.autograd.grad(value.sum(), start)
    return Slope(gradient, values.detach(), value.detach(), clipped)


def differentiate(
    field: VelocityField, noisy_chunk: Tensor, flow_time: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    r"""Evaluate a field and keep the way back from the clean prediction to the noisy chunk.

    Args:
        field: Differentiable in its first argument.
        noisy_chunk: x, (B, H, A).
        flow_time: tau, (B,).

    Returns:
        The velocity (B, H, A), detached, and the vector-Jacobian product of the unclipped clean
        prediction, :math:`u \mapsto (I + (1-\tau)\, \partial v/\partial x)^\top u`. The graph
        lives as long as that function does.
    """
    with local_gradients():
        start, time = leaf(noisy_chunk), flow_time.clone()
        velocity = field(start, time)
        prediction = predict_clean(start, time, velocity)

    def pull(cotangent: Tensor) -> Tensor:
        with local_gradients():
            (pulled,) = torch.autograd.grad(
                prediction, start, grad_outputs=cotangent.clone(), retain_graph=True
            )
        return pulled

    return velocity.detach(), pull


def norm_per_sample(tensor: Tensor) -> Tensor:
    """Euclidean norm over the whole chunk, shaped to multiply it: (B, H, A) -> (B, 1, 1)."""
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=(1, 2), keepdim=True)
    return norm


def check_weight(weight: float, *, name: str = "weight") -> None:
    """Refuse a weight no rule can use.

    Raises:
        ConfigError: ``weight`` is negative or not finite.
    """
    if not (math.isfinite(weight) and weight >= 0.0):
        raise ConfigError(
            f"'{name}' must be finite and at least 0: got {weight}. "
            "Weight of the critic's gradient."
        )
