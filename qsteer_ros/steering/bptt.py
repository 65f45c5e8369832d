"""Back-propagation through the sampler: the gradient of the end with respect to where we are."""

from __future__ import annotations

import torch

from qsteer_ros.ensemble import Aggregate, QFunction, minimum
from qsteer_ros.flow import Sampler
from qsteer_ros.steering.clean import finish
from qsteer_ros.steering.gradient import check_weight, leaf, local_gradients, slope_at
from qsteer_ros.steering.guide import Look, Push, Rule


def bptt(q: QFunction, *, weight: float, sampler: Sampler, aggregate: Aggregate = minimum) -> Rule:
    r"""Add the gradient of the finished chunk's value with respect to the noisy chunk.

    .. math:: v_w(x, \tau) = v(x, \tau)
              + w \, \nabla_x \bar Q\big(\operatorname{clip}[E(x, \tau)]\big),

    where E integrates the frozen field from flow time :math:`\tau` to 1. The clip is inside the
    map: a component that ends saturated counts nothing. Nothing is clipped on the way.

    With T Euler steps a chunk costs T (T + 1) / 2 more evaluations of the field forwards and as
    many backwards; the graph of one step's remaining path is in memory at a time.

    Args:
        q: Critic for the same observation, (B, H, A) -> (E, B); target networks.
        weight: w >= 0, in (normalised action)^2 per unit of return. 0 leaves the field alone.
        sampler: Integrates the frozen field: the one that denoises. At a flow time that is not
            on its grid the first step goes to the next grid point.
        aggregate: How members become one value.

    Returns:
        A rule for `guide`.

    Raises:
        ConfigError: ``weight`` is negative or not finite.

    Source:
        The baseline of Q-Guided Flow, arXiv:2606.11087. Differs: its code calls a method that
        does not exist; that nothing is clipped between steps is our reading of it.
    """
    check_weight(weight)

    def push(look: Look) -> Push:
        with local_gradients():
            start = leaf(look.noisy_chunk)
            end = finish(look.whole, start, look.tau, sampler)
        slope = slope_at(q, end.detach(), aggregate=aggregate, bounds=look.bounds)
        inside = torch.where(slope.clipped, torch.zeros_like(slope.gradient), slope.gradient)
        with local_gradients():
            (gradient,) = torch.autograd.grad(end, start, grad_outputs=inside)
        return Push(weight * gradient, slope)

    return Rule(push, idle=weight == 0.0)
