"""The magnitude control: a random direction as long as the guidance it stands in for."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from qsteer_ros.ensemble import Aggregate, QFunction, minimum
from qsteer_ros.flow import VelocityField
from qsteer_ros.steering.gradient import (
    NORMALISED,
    Bounds,
    check_weight,
    norm_per_sample,
    slope_at_clean,
)
from qsteer_ros.steering.qgf import check_max_ratio, shorten
from qsteer_ros.steering.trace import Trace

_STREAM = 0x52414E44
"""Keeps directions apart from other uses of the same seed, such as the initial noise."""


def random_matched(
    field: VelocityField,
    q: QFunction,
    *,
    weight: float,
    seed: int,
    aggregate: Aggregate = minimum,
    bounds: Bounds = NORMALISED,
    max_ratio: float = math.inf,
    trace: Trace | None = None,
) -> VelocityField:
    r"""Add a random direction with the norm that QGF's guidance would have.

    .. math:: v_w = v + \lVert w g \rVert \, \frac{\epsilon}{\lVert \epsilon \rVert}, \qquad
              \epsilon \sim N(0, I)

    If this helps as much as the critic's gradient, the gradient's direction carries nothing.

    The direction is a function of seed, flow time and shape alone, so the field stays a function:
    asked twice, it answers the same.

    Args:
        field: Frozen field, (B, H, A), (B,) -> (B, H, A), normalised.
        q: Critic for the same observation, (B, H, A) -> (E, B).
        weight: As in :func:`~qsteer_ros.steering.qgf.qgf`; 0 returns ``field`` itself.
        seed: Of the directions, >= 0; use another one for every chunk.
        aggregate: How members become one value.
        bounds: Of normalised actions.
        max_ratio: As in :func:`~qsteer_ros.steering.qgf.qgf`.
        trace: Collects what happened; the cosine is that of the random direction.

    Raises:
        ConfigError: ``weight`` is negative or not finite, or ``max_ratio`` is not positive.
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
        matched = shorten(weight * slope.gradient, velocity, max_ratio=max_ratio)
        direction = random_direction(velocity, flow_time, seed=seed)
        guidance = norm_per_sample(matched) * direction
        if trace is not None:
            trace.record(flow_time, velocity, guidance, slope)
        return velocity + guidance

    return steered


def random_direction(like: Tensor, flow_time: Tensor, *, seed: int) -> Tensor:
    """Isotropic unit vectors, (B, H, A), drawn on the CPU from (seed, first row's flow time)."""
    tick = round(float(flow_time[0]) * 2**20)
    (state,) = np.random.SeedSequence([_STREAM, seed, tick]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state) >> 1)
    normal = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
    return normal / norm_per_sample(normal)
