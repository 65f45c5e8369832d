r"""Temporal differences with a policy's own chunk in the bootstrap: the value of acting steered.

.. math::

    y &= R + b \, (\operatorname{mean}_e - \rho \operatorname{std}_e) \, \bar Q_e(s', a'), \qquad
    a' = \operatorname{steer}(s') \\
    L_Q &= \operatorname{mean}_e (Q_e(s, a) - y)^2

The chunk :math:`a'` comes from the frozen policy, steered by the target networks, without
gradient: what the arm would do after the data's chunk if it were steered by this critic.

Source: QPILOTS, arXiv:2606.14801, on OGBench; Q-VGM v5, arXiv:2606.08015, online.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qsteer_ros.critics.losses import chunk_target
from qsteer_ros.ensemble import Aggregate, QFunction


def td_target(
    q: QFunction,
    next_chunk: Tensor,
    *,
    reward: Tensor,
    bootstrap: Tensor,
    aggregate: Aggregate,
) -> Tensor:
    """Target y, without gradient, (B,).

    Args:
        q: Target networks, conditioned on the next state.
        next_chunk: a', what the steered policy does there, (B, H, A).
        reward: R, discounted inside the data's chunk, (B,).
        bootstrap: b, gamma^K, or 0 where the task has ended, (B,).
        aggregate: How the target networks become one value: their pessimism.
    """
    with torch.no_grad():
        return chunk_target(reward, bootstrap, aggregate(q(next_chunk)))
