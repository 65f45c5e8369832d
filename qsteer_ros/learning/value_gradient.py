r"""Value-gradient matching (Q-VGM): what the critic wants, written as a change of velocity.

At a state :math:`x_k` of the denoising path, flow time :math:`\tau_k = k/T`:

.. math::

    \hat a_k &= x_k + (1 - \tau_k) \, v_{ref}(x_k, \tau_k) && \text{look-forward} \\
    a_k^\star &= \operatorname{climb}(\operatorname{clip}(\hat a_k)) && \text{a few steps up Q} \\
    h_k &= \frac{a_k^\star - \operatorname{clip}(\hat a_k)}{1 - \tau_k} && \text{correction} \\
    L &= \sum_k w_k \operatorname{mean}_b
         \big\lVert (v_\theta - v_{ref})(x_k, \tau_k) - h_k \big\rVert^2

The states are those of the policy that is trained, from noise; :math:`x_k`, :math:`v_{ref}` and
:math:`h_k` carry no gradient. Afterwards the critic is not needed: the trained policy acts alone.
Only the versions in :mod:`~qsteer_ros.learning.qvgm_variants` say which numbers go together.

The displacement is taken from the clipped look-forward, where the climb starts. So a climb that
finds nothing better asks for no change at all, also where the look-forward lies outside the
bounds; v1 as printed would there pull the velocity back into the box even without a critic.

Source: Q-VGM, arXiv:2606.08015, v1 eqs. 5 to 8 (noise at time 1 there: tau = 1 - t, velocities
change sign), v2, v5 eq. 10; without the value-gradient network of VGG-Flow, arXiv:2512.05116.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from qsteer_ros import ensemble
from qsteer_ros.ensemble import QFunction
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler, VelocityField, predict_clean
from qsteer_ros.learning.qvgm_variants import Variant
from qsteer_ros.steering.gradient import NORMALISED, Bounds
from qsteer_ros.steering.gradient_step import Ascent, gradient_step

EVERYWHERE: Bounds = (-math.inf, math.inf)
"""No projection."""

Climb = Callable[[Tensor], Ascent]
"""A chunk (B, H, A) inside the bounds -> where the critic takes it."""


class Correction(NamedTuple):
    """What the critic asks of the velocity.

    Attributes:
        velocity: h, to be added to the reference's velocity, (B, H, A), float32 or better,
            normalised action units per unit of flow time; detached.
        ascent: The climb it came from.
    """

    velocity: Tensor
    ascent: Ascent


@torch.no_grad()
def roll(velocity_field: VelocityField, noise: Tensor, *, denoising_steps: int) -> Tensor:
    """States that Euler's path from noise visits, without a gradient.

    Args:
        velocity_field: The policy that is trained, for the observations of the batch.
        noise: x_0, (B, H, A).
        denoising_steps: T.

    Returns:
        x_0 to x_{T-1}, (T, B, H, A); the finished chunk is not among them.

    Raises:
        ConfigError: ``denoising_steps`` is below 1.
    """
    sampler, states = Sampler(denoising_steps), [noise]
    for step in range(denoising_steps - 1):
        states.append(sampler.step(velocity_field, states[-1], step))
    return torch.stack(states)


def climb_of(variant: Variant, q: QFunction) -> Climb:
    """How a version climbs a critic.

    Args:
        variant: The version.
        q: Critic for the observations of the batch; members are averaged, so a critic whose heads
            become one value otherwise comes here as an ensemble of one.
    """

    def climb(start: Tensor) -> Ascent:
        return gradient_step(
            start,
            q,
            step_size=variant.step_size,
            steps=variant.ascent_steps,
            aggregate=ensemble.mean,
            direction=variant.direction,
            keep=variant.keep,
            max_norm=variant.max_norm,
            bounds=bounds_of(variant),
        )

    return climb


def bounds_of(variant: Variant) -> Bounds:
    """Where a version's climb must stay."""
    return NORMALISED if variant.boxed else EVERYWHERE


def step_weights(variant: Variant) -> tuple[float, ...]:
    """w_k of a version, one per step of the path.

    Raises:
        ConfigError: A number of the version is out of range.
    """
    if variant.gate == "last":
        return last_steps(variant.denoising_steps, variant.last_steps)
    return power_gate(variant.denoising_steps, variant.gate_power)


def last_steps(denoising_steps: int, last: int) -> tuple[float, ...]:
    """Weights w_k of v2 and v5: 1 on the last steps, 0 before.

    Raises:
        ConfigError: ``last`` is not one of 1 to ``denoising_steps``.
    """
    if not 1 <= last <= denoising_steps:
        raise ConfigError(
            f"the corrected steps must be 1 to {denoising_steps} of the path's: got {last}. "
            "Correct 'last_steps'."
        )
    return tuple(float(step >= denoising_steps - last) for step in range(denoising_steps))


def power_gate(denoising_steps: int, power: float) -> tuple[float, ...]:
    r"""Weights w_k of v1: :math:`(1 - t_k)^p = \tau_k^p` on all steps; p = 0 weighs all alike.

    Raises:
        ConfigError: ``power`` is negative or not finite.
    """
    if not (math.isfinite(power) and power >= 0.0):
        raise ConfigError(
            f"'gate_power' must be finite and at least 0: got {power}. 1 rises linearly."
        )
    return tuple((step / denoising_steps) ** power for step in range(denoising_steps))


def correct(
    reference_velocity: Tensor,
    noisy_chunk: Tensor,
    flow_time: Tensor,
    climb: Climb,
    *,
    bounds: Bounds,
) -> Correction:
    """The critic's correction of the velocity at states of the path; see the module.

    Args:
        reference_velocity: v_ref there, (B, H, A).
        noisy_chunk: x, (B, H, A).
        flow_time: tau, (B,), below 1; rows may differ.
        climb: Up the critic; samples must not influence each other.
        bounds: Of normalised actions; :data:`EVERYWHERE` projects nothing.

    Returns:
        h and the climb; rows in which nothing better was found have h = 0 exactly.
    """
    state, time = _exact(noisy_chunk), _exact(flow_time)
    start = predict_clean(state, time, _exact(reference_velocity)).clamp(*bounds)
    ascent = climb(start)
    displacement = _exact(ascent.chunk) - start
    return Correction(displacement / (1.0 - time).view(-1, 1, 1), ascent)


def matching_loss(
    velocity: Tensor, reference_velocity: Tensor, correction: Tensor, weights: Tensor
) -> Tensor:
    """L of the module: summed over the chunk and the steps, averaged over the batch.

    In float32 or better whatever the networks compute in: a correction of 0.1 to a velocity of 32
    would vanish in bfloat16.

    Args:
        velocity: Of the policy that is trained, (M, B, H, A); the only one with a gradient.
        reference_velocity: (M, B, H, A).
        correction: h, (M, B, H, A).
        weights: w of each of the M steps, (M,).

    Returns:
        A scalar.
    """
    change = _exact(velocity) - _exact(reference_velocity.detach())
    errors = (change - correction.detach()).square().sum(dim=(2, 3)).mean(dim=1)  # (M,)
    return (weights * errors).sum()


def _exact(tensor: Tensor) -> Tensor:
    """In float32, or as it is where that is finer."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
