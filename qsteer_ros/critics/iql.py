r"""Implicit Q-learning on chunks: no action outside the data is ever judged.

.. math::

    y &= R + b \, V(s') \\
    L_Q &= \operatorname{mean}_e (Q_e(s, a) - y)^2 \\
    L_V &= |\kappa - 1[u \le 0]| \, u^2, \qquad u = \min_e \bar Q_e(s, a) - V(s)

Source: IQL, arXiv:2110.06169; on chunks QGF, arXiv:2606.11087, and Q-VGM v5, arXiv:2606.08015.
"""

from __future__ import annotations

from torch import Tensor

from qsteer_ros.critics.losses import chunk_target, critic_loss, expectile_loss
from qsteer_ros.ensemble import Aggregate, minimum


def iql_losses(
    values: Tensor,
    value: Tensor,
    *,
    slow: Tensor,
    next_value: Tensor,
    reward: Tensor,
    bootstrap: Tensor,
    expectile: float,
    aggregate: Aggregate = minimum,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Losses of Q and of V; each moves its own network only.

    Args:
        values: Q of each member at the data's chunks, (E, B).
        value: V at the same states, (B,).
        slow: :math:`\bar Q` of each target network at the data's chunks, (E, B).
        next_value: V after the chunk, (B,).
        reward: R, discounted inside the chunk, (B,).
        bootstrap: b, :math:`\gamma^K`, or 0 where the task has ended, (B,).
        expectile: kappa in (0, 1).
        aggregate: How the target networks become one value.
        valid: 0 for rows that must not count, (B,); they stay in the denominator.

    Returns:
        L_Q and L_V.

    Raises:
        ConfigError: ``expectile`` is not inside (0, 1).
    """
    target = chunk_target(reward, bootstrap, next_value)
    q_loss = critic_loss(values, target, valid=valid)
    return q_loss, expectile_loss(aggregate(slow), value, expectile=expectile, valid=valid)
