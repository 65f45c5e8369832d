r"""SARSA on chunks: the value of the behaviour, bootstrapped with the data's next chunk.

.. math::

    y &= R + b \, (\operatorname{mean}_e - \rho \operatorname{std}_e) \, \bar Q_e(s', a'), \qquad
    a' \text{ the chunk that follows in the data} \\
    L_Q &= \operatorname{mean}_e (Q_e(s, a) - y)^2

Source: QPILOTS, arXiv:2606.14801, on LIBERO.
"""

from __future__ import annotations

from torch import Tensor

from qsteer_ros.critics.losses import chunk_target, critic_loss
from qsteer_ros.ensemble import Aggregate


def countable(bootstrap: Tensor, next_valid: Tensor) -> Tensor:
    """Rows whose target is known, (B,) of 0 and 1.

    A row that bootstraps must be followed by a chunk of the data; one whose task has ended needs
    none.

    Args:
        bootstrap: 0 where the task has ended, (B,).
        next_valid: Whether a chunk follows in the data, (B,) bool.
    """
    return (next_valid | (bootstrap == 0.0)).to(bootstrap.dtype)


def sarsa_loss(
    values: Tensor,
    *,
    next_values: Tensor,
    reward: Tensor,
    bootstrap: Tensor,
    next_valid: Tensor,
    aggregate: Aggregate,
    valid: Tensor | None = None,
) -> Tensor:
    r"""L_Q, over the rows whose next chunk is known.

    Args:
        values: Q of each member at the data's chunks, (E, B).
        next_values: :math:`\bar Q` of each target network after the chunk, at the data's next
            chunk, (E, B); finite also where there is none.
        reward: R, discounted inside the chunk, (B,).
        bootstrap: b, :math:`\gamma^K`, or 0 where the task has ended, (B,).
        next_valid: Whether a chunk follows in the data, (B,) bool.
        aggregate: How the target networks become one value: their pessimism.
        valid: 0 for rows that must not count besides, (B,). Rows that do not count stay in the
            denominator.
    """
    target = chunk_target(reward, bootstrap, aggregate(next_values))
    counts = countable(bootstrap, next_valid)
    return critic_loss(values, target, valid=counts if valid is None else counts * valid)
